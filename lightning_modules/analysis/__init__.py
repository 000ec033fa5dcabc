"""Errors of detectors and their costs: pure functions over saved detections and their ground truth."""
