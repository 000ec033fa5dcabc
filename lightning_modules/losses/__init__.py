"""Losses: from tensors to a scalar or to named scalars."""
