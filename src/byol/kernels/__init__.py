"""Fast convolution and normalisation on CPUs: compiled on this machine and compared with PyTorch."""
