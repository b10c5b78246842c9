"""Present a run: report, model card, comparison, explorer."""
