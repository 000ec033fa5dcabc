"""Evaluation: predictions collected, placed in time, tracked, scored, and what is measured of a network beside them."""
