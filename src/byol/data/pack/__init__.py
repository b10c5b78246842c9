"""The packed copy of a set of images: written once, checked, and read in batches."""
