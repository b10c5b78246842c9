"""The results of a run: the encoder, a classifier on top of it, and files of features."""
