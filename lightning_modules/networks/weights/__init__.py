"""Weights: files with their cards, published names, VideoMAE, and how a student starts from its teacher."""
