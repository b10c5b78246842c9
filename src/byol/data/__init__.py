"""Read files from disk into arrays of images for training."""
