"""Files of a run: predictions, detections, tubes, segments, scores per frame, annotated video."""
