"""Where images come from: folders, lists, arrays, known data sets; and a look at some of them."""
