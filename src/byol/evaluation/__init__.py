"""How good an encoder is: with labels a table of accuracies, without them its measures."""
