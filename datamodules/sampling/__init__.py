"""Sampling: which frames of which videos make a sample, in which order, and how samples become a batch."""
