"""Layers: attention, linear maps, positions, RoIAlign, LSTM, pixels; each alone and without a state of its own."""
