"""Measurements around a run: operations, latency, the benchmark table, and pictures of detections."""
