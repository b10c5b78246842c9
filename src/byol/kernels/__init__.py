"""Fast convolution and normalisation on CPUs: compiled for the CPU at hand and tried against PyTorch."""
