"""Lanes of which only some have a frame: each is predicted on as if it were alone."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from datamodules.batches import Capture, StreamBatch
from datamodules.frame_stream import stream_batch
from datamodules.live.cameras import side_by_side
from datamodules.predict import with_ends
from lightning_modules.evaluation.stream_predictor import StreamPredictor
from lightning_modules.evaluation.tracked import TrackedFrame
from lightning_modules.networks.detection.outputs import decode_detections
from lightning_modules.networks.streaming import state_bytes
from lightning_modules.networks.students.detector import DetectorState
from tests.lightning_modules import tiny
from tests.networks.tiny import randomise

CLASSES = ("walk", "wave")
SIZE = (64, 64)


def predictor(look_ahead: int = 0) -> StreamPredictor:
    network = randomise(tiny.student("dsta", look_ahead=look_ahead)).eval()
    with torch.no_grad():  # so that the tracker takes everybody for a person
        for stage in network.head.localizer.stages:
            stage.class_logits.bias.copy_(torch.tensor([2.0, -2.0]))
    return StreamPredictor(network, partial(decode_detections, person_threshold=0.0, score="person_x_action"))


def state_of(stream: StreamPredictor, lane: int) -> DetectorState:
    return stream.lane_states._states[lane]


def frame(camera: int, index: int, is_first: bool, is_last: bool = False, size: tuple[int, int] = SIZE) -> StreamBatch:
    """A frame of a camera, noise that depends on both."""
    pixels = np.random.default_rng([camera, index]).integers(0, 256, (1, *size, 3), dtype=np.uint8)
    row = stream_batch(f"camera {camera}", pixels, pixels, [index / 8], [index], is_first, is_last, len(CLASSES))
    return row._replace(capture=Capture(torch.zeros(1, 1, dtype=torch.float64), 0, 0))


@torch.inference_mode()
def alone(camera: int, starts: Sequence[int], count: int, look_ahead: int, size: tuple[int, int]) -> list[TrackedFrame]:
    """Predictions where there is one camera, whose stream starts anew at some frames and ends with the last."""
    stream = predictor(look_ahead)
    found = []
    for index in range(count):
        batch = frame(camera, index, index in starts, index == count - 1, size)
        found += stream.track(stream.add(batch), CLASSES)
    return found


def assert_same(found: Sequence[TrackedFrame], expected: Sequence[TrackedFrame]) -> None:
    """Up to the rounding of batches of other sizes."""
    assert [each[:4] for each in found] == [each[:4] for each in expected]
    assert sum(len(each.people) for each in expected) > 0
    for ours, theirs in zip(found, expected, strict=True):
        assert [person.track for person in ours.people] == [person.track for person in theirs.people]
        for one, other in zip(ours.people, theirs.people, strict=True):
            assert one.box == pytest.approx(other.box, abs=1e-2)
            assert one.person_score == pytest.approx(other.person_score, abs=1e-4)
            assert one.actions == pytest.approx(other.actions, abs=1e-4)


@pytest.mark.parametrize("count", [2, 6])
def test_late_predictions_of_a_stream_that_breaks_off_are_those_of_one_that_ends(count):
    stream = predictor(look_ahead=3)
    broken_off = (frame(0, index, index == 0) for index in range(count))
    with torch.inference_mode():
        found = [each for batch in with_ends(broken_off) for each in stream.track(stream.add(batch), CLASSES)]
    assert_same(found, alone(0, (0,), count, 3, SIZE))


def test_late_predictions_of_many_streams_that_break_off_are_those_of_streams_that_end():
    stream, counts = predictor(look_ahead=3), {2: 7, 5: 4}
    broken_off = (
        side_by_side({camera: frame(camera, index, index == 0) for camera, count in counts.items() if index < count})
        for index in range(max(counts.values()))
    )
    with torch.inference_mode():
        found = [each for batch in with_ends(broken_off) for each in stream.track(stream.add(batch), CLASSES)]
    for camera, count in counts.items():
        of_camera = [each for each in found if each.video_id == f"camera {camera}"]
        assert_same(of_camera, alone(camera, (0,), count, 3, SIZE))


@pytest.mark.parametrize("look_ahead", [0, 3])
def test_each_camera_is_predicted_on_as_if_it_were_alone(look_ahead):
    """One shows every frame, one every other, one is away for long and starts anew, one has larger frames."""
    sizes = ((64, 64), (64, 64), (64, 64), (64, 96))
    starts = ((0,), (0,), (0, 4), (0,))
    counts = (12, 6, 8, 9)
    shown = [list(range(12)), list(range(0, 12, 2)), [0, 1, 2, 3, 8, 9, 10, 11], list(range(3, 12))]
    stream, found, indices = predictor(look_ahead), {camera: [] for camera in range(4)}, [0] * 4
    with torch.inference_mode():
        for moment in range(12):
            rows: dict[tuple[int, int], dict[int, StreamBatch]] = {}
            for camera in np.random.default_rng(moment).permutation(4).tolist():  # in any order
                if moment in shown[camera]:
                    index = indices[camera]
                    is_last = index == counts[camera] - 1
                    row = frame(camera, index, index in starts[camera], is_last, sizes[camera])
                    rows.setdefault(sizes[camera], {})[camera] = row
                    indices[camera] += 1
            for alike in rows.values():
                for each in stream.track(stream.add(side_by_side(alike)), CLASSES):
                    found[int(each.video_id[-1])].append(each)
    for camera in range(4):
        expected = alone(camera, starts[camera], counts[camera], look_ahead, sizes[camera])
        assert [each.frame for each in expected] == list(range(counts[camera]))
        assert_same(found[camera], expected)


@torch.inference_mode()
def test_what_breaks_one_lane_does_not_reach_another_and_ends_where_it_starts_anew():
    stream = predictor()
    for index in range(3):
        stream.add(side_by_side({lane: frame(lane, index, index == 0) for lane in (0, 1)}))
    broken = tree_map(lambda part: part * torch.nan if part.is_floating_point() else part, state_of(stream, 0))
    stream.lane_states.keep((0,), broken)
    unbroken = [part.clone() for part in tree_leaves(state_of(stream, 1))]
    stream.add(side_by_side({2: frame(2, 0, True), 3: frame(3, 0, True)}))
    assert all(torch.equal(*parts) for parts in zip(unbroken, tree_leaves(state_of(stream, 1)), strict=True))
    healed = stream.add(side_by_side({0: frame(0, 9, True), 1: frame(1, 9, False)}))
    assert len(healed) == 2 and all(torch.isfinite(each.found.boxes).all() for each in healed)


def test_a_lane_that_goes_on_must_have_begun():
    with pytest.raises(KeyError):
        predictor().add(side_by_side({5: frame(5, 1, is_first=False)}))


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not say how much memory is used")
@torch.inference_mode()
def test_memory_stays_flat_over_thousands_of_frames_of_cameras_that_come_and_go():
    """No lane holds the memory of a batch, and the process what it held after the first frames."""
    stream, sizes, seen = predictor(look_ahead=3), [], 0
    rows = {camera: frame(camera, 0, is_first=True) for camera in range(4)}
    for moment in range(600):
        starts = torch.tensor([moment % 50 == 0])
        present = {camera: row for camera, row in rows.items() if moment // 50 % (camera + 1) == 0}
        batch = side_by_side({camera: row._replace(is_first=starts) for camera, row in present.items()})
        seen += len(stream.track(stream.add(batch), CLASSES))
        if moment in (150, 599):
            sizes.append(resident_mib())
            parts = [part for lane in range(4) for part in tree_leaves(state_of(stream, lane))]
            held = {part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in parts}
            assert sum(held.values()) == sum(state_bytes(state_of(stream, lane)) for lane in range(4))
    assert seen > 1000 and sizes[1] - sizes[0] < 8
