"""Streaming detectors: a causal trunk, the teacher's head, a memory of context, and their delay."""
