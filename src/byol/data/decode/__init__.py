"""Decode one image file to an array of its stored values, or give the reason why that fails."""

from byol.data.decode.image import decode

__all__ = ["decode"]
