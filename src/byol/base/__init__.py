"""Common tools for all packages: errors, atomic files, the cache of results, and the console."""
