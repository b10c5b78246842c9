"""Fine-tune an encoder and a classifier on labels, and compare it with a classifier on frozen features."""
