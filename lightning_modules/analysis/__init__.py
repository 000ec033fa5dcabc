"""What detectors get wrong, and what it costs: pure functions over saved detections and their ground truth."""
