"""Read and write the files of a run folder: checkpoints, configuration, environment and lock."""
