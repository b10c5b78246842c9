"""Evaluate an encoder: accuracies if there are labels, label-free measures if there are none."""
