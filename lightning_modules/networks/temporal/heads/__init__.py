"""Heads of temporal detectors: dense outputs in time, their losses, their decoding."""
