"""Faults put into byol on purpose, to see that nothing is lost: the suite behind `scripts/faults`."""
