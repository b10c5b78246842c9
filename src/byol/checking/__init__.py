"""`byol check`: examine whether images can be used for training."""
