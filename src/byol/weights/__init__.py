"""Weights from elsewhere: files of other libraries, read without unpickling and fitted to our encoders."""
