"""The files of a run folder, each with one reader and one writer."""
