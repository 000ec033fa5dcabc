"""Puppets: a procedural video data set whose classes need time to be told apart."""

from datamodules.puppets.source import Puppets

__all__ = ["Puppets"]
