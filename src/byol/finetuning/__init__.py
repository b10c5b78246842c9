"""A classifier trained from an encoder, compared with one on frozen features."""
