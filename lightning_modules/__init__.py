"""Experiments: one LightningModule a file, thin; networks, losses and metrics in their own rooms."""
