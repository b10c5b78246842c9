"""BYOL itself: the networks, the views, the optimizers and the schedule."""
