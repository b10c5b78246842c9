"""Tables of labels: read in any encoding and matched to the images."""
