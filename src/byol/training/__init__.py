"""Train: the loop, its setup, the step, the time budget, health checks and logs."""
