"""The packed copy of a set of images: write it once, check it, and read it in batches."""
