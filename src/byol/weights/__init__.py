"""Weights of other libraries: read their files without running pickled code, and fit them to an encoder."""
