"""One image file to an array of the values that were saved, or the reason why not."""

from byol.data.decode.image import decode

__all__ = ["decode"]
