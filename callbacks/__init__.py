"""Around a run: operations, latency, the benchmark table, pictures of detections, and what prediction finds."""
