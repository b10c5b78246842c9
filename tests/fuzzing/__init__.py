"""Random damage to everything that byol reads: `scripts/fuzz`."""
