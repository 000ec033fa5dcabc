"""Frames: decoded at the scale that networks see, kept in a cache."""
