"""One image file to an array of the values that were saved, or the reason why not."""
