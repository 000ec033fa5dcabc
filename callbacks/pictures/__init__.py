"""Pictures of a run: detections on frames, time lines of segments."""
