"""From files on disk to arrays of images that training reads."""
