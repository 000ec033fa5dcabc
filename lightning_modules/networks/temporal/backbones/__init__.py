"""Backbones of temporal detectors: from steps of an untrimmed video to features in time."""
