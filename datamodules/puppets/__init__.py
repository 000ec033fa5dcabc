"""Puppets: a procedural video data set whose classes only time distinguishes."""

from datamodules.puppets.source import Puppets

__all__ = ["Puppets"]
