"""Where a run computes: the device and its number format, the ranks of a distributed run, and memory."""
