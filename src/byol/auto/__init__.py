"""Settings that nobody gave: chosen from the images and the machine."""
