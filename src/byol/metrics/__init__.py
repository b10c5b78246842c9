"""Numbers from arrays of features and predictions: classifiers, folds, intervals, health, verdict."""
