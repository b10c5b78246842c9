"""What every room uses: errors, atomic files, the cache of results, and the console."""
