"""The training loop and what it needs: setup, step, time budget, alarms, logs."""
