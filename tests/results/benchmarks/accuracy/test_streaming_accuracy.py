"""The page of streaming accuracy: maps by speed from saved rows, its table and picture."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
import yaml

from datamodules.batches import TrueKeyframe
from lightning_modules.metrics.frame_ap import FrameMapSettings, FrameRows
from results.benchmarks.accuracy.streaming_accuracy import SPEEDS, Detector, main, streaming_maps

STEP = 0.1


def rows(videos: int, frames: int, speed: float = 3.0) -> tuple[FrameRows, FrameRows, list[TrueKeyframe]]:
    """One person a frame, walking so fast that a box of three frames ago no longer overlaps; keyframes shuffled."""
    random = np.random.default_rng(0)
    places = [(video, at) for video in range(videos) for at in range(frames)]
    places = [places[index] for index in random.permutation(len(places))]
    boxes = np.asarray([[speed * at, 0, speed * at + 10, 20] for _, at in places], float)
    labels = random.integers(0, 2, len(places))
    label_of = {video: labels[video] for video in range(videos)}
    classes = np.asarray([label_of[video] for video, _ in places])
    count = np.arange(len(places))
    rows = FrameRows(count, boxes, count, classes, np.ones(len(places)))
    keyframes = [
        TrueKeyframe(f"v{video}", STEP * at, box[None].astype(np.float32), np.eye(2)[[label]], (240, 320))
        for (video, at), box, label in zip(places, boxes, classes, strict=True)
    ]
    return rows._replace(scores=random.uniform(0.5, 1, len(places))), rows, keyframes


def detector(**changes) -> Detector:
    return Detector(**({"name": "one", "config": "none", "predictions": "none", "latency_ms": 0.0} | changes))


def test_without_any_time_every_speed_has_the_map_of_tables():
    maps = streaming_maps(*rows(3, 12), 2, detector(), FrameMapSettings())
    assert set(maps) == {"offline", *(f"{speed:g}" for speed in SPEEDS)}
    assert set(maps.values()) == {1.0}


def test_a_slow_machine_sees_people_where_they_were():
    """Boxes are 10 wide and move 3 a frame: one frame late they overlap by 7/13, two frames late by 4/16.

    At 4x a prediction takes less than a frame and is one late: all but the first of the 12 frames of a video are found.
    At 0.25x it takes six frames: nothing is.
    """
    maps = streaming_maps(*rows(3, 12), 2, detector(latency_ms=150.0), FrameMapSettings())
    assert maps["0.25"] == 0 and maps["offline"] == 1
    assert maps["4"] == maps["16"] == pytest.approx(11 / 12)
    assert maps["4"] > maps["1"]


def test_what_is_awaited_stays_however_fast_the_machine_is():
    maps = streaming_maps(*rows(3, 12), 2, detector(frames_awaited=2), FrameMapSettings())
    assert maps["16"] == 0 and maps["offline"] == 1


def test_the_page_is_drawn_again_without_the_predictions(tmp_path):
    maps = streaming_maps(*rows(2, 8), 2, detector(latency_ms=150.0), FrameMapSettings())
    line = asdict(detector(note="measured here.")) | {"maps": maps, "protocol": "ava frame mAP@0.5", "commit": "abc"}
    (tmp_path / "page.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "list.yaml").write_text(yaml.safe_dump({"detectors": []}))
    main([str(tmp_path / "list.yaml"), "--out", str(tmp_path / "page.md"), "--draw_only"])
    text = (tmp_path / "page.md").read_text()
    assert "## Streaming ava frame mAP@0.5" in text and "one: measured here." in text and "](page.png)" in text
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
