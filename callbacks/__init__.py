"""Around a run: operations, latency, the benchmark table, pictures of detections, and what prediction finds.

What a config may name can be imported from here, and is loaded when it is first asked for.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "benchmark.callback": ["BenchmarkTable"],
        "events.mqtt": ["MqttSink"],
        "events.reporter": ["EventReporter"],
        "events.webhook": ["WebhookSink"],
        "files.camera_health": ["CameraHealth"],
        "files.detection_file": ["DetectionFile"],
        "files.frame_score_file": ["FrameScoreFile"],
        "files.prediction_writer": ["PredictionWriter"],
        "files.segment_file": ["SegmentFile"],
        "files.tube_file": ["TubeFile"],
        "measures.streaming": ["StreamingAccuracy"],
        "measures.monitors": ["GflopsMonitor", "LatencyMonitor"],
        "page.callback": ["LivePage"],
        "pictures.detection_images": ["DetectionImages"],
        "pictures.segment_timelines": ["SegmentTimelines"],
        "progress": ["PredictionProgress"],
        "run_checkpoint": ["RunCheckpoint"],
    },
)
