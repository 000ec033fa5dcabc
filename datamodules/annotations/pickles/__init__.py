"""Pickled annotation, read without running anything that a file says."""
