"""Work on arrays of features and predictions: classifiers, folds, intervals, health and the verdict."""
