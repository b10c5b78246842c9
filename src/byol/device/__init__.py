"""Devices and their precision, the ranks of a distributed run, and memory."""
