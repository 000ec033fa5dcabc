"""Optical flow: methods, stores, and a cache."""
