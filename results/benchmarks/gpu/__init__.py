"""Benchmark of a GPU in eight minutes: steps, streams side by side, training, compilation."""
