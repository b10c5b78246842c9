"""What a run leaves: the encoder, a classifier on it, and files of features."""
