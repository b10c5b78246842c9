"""Sources of images: folders, lists, arrays and known data sets; and statistics of some of their images."""
