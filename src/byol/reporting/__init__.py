"""What to show of a run: report, model card, comparison, explorer."""
