import doctest
from itertools import pairwise, product

import numpy as np
import pytest

from datamodules.sampling import indexing
from datamodules.sampling.indexing import annotated_at, keyframes_on_grid, num_slots, stream_chunks, window_indices


def test_the_examples_in_the_docstrings_hold():
    assert doctest.testmod(indexing).failed == 0


@pytest.mark.parametrize(
    ("keyframe", "num_frames", "stride", "length", "expected"),
    [
        (40, 16, 4, 500, list(range(8, 69, 4))),  # EVAD: c - 32 .. c + 28
        (2, 4, 2, 100, [0, 0, 2, 4]),  # start repeated
        (98, 4, 2, 100, [94, 96, 98, 99]),  # end repeated
        (0, 4, 5, 1, [0, 0, 0, 0]),  # a video of one frame
        (7, 3, 0, 10, [7, 7, 7]),  # single-frame floor
        (7, 1, 4, 10, [7]),
        (5, 5, 1, 10, [3, 4, 5, 6, 7]),
    ],
)
def test_clips_are_clamped_to_the_video(keyframe, num_frames, stride, length, expected):
    past = num_frames // 2 + 1
    indices = window_indices(keyframe, past, num_frames - past, stride, length)
    assert indices.tolist() == expected
    assert indices[num_frames // 2] == keyframe


@pytest.mark.parametrize(("keyframe", "stride", "length"), list(product([0, 3, 50, 97], [1, 4, 7], [98, 400])))
def test_teacher_and_student_see_the_same_frames_around_a_keyframe(keyframe, stride, length):
    clip = window_indices(keyframe, past=9, future=7, stride=stride, length=length)
    assert window_indices(keyframe, past=9, future=0, stride=stride, length=length).tolist() == clip[:9].tolist()


def test_the_annotation_nearest_to_a_sampled_frame_stands_for_its_slot():
    # Stride 5 samples 0, 5, 10; 4 belongs to slot 0 although 5 is nearer, since 5 is later.
    assert keyframes_on_grid([4, 5, 9, 14], stride=5, length=15).tolist() == [[0, 0], [1, 1], [2, 3]]
    assert keyframes_on_grid([12, 3, 1], stride=5, length=15).tolist() == [[0, 2], [2, 0]]
    assert keyframes_on_grid([], stride=5, length=15).shape == (0, 2)
    with pytest.raises(ValueError, match="leave a video of 15 frames"):
        keyframes_on_grid([15], stride=5, length=15)


def test_with_stride_1_every_annotated_frame_is_scored():
    assert keyframes_on_grid([2, 3, 8], stride=1, length=9).tolist() == [[2, 0], [3, 1], [8, 2]]


def test_windows_of_any_phase_find_the_annotations_that_a_grid_of_that_phase_would():
    rng = np.random.default_rng(0)
    for _ in range(50):
        stride, length = int(rng.integers(1, 6)), int(rng.integers(10, 60))
        annotated = np.flatnonzero(rng.random(length) < 0.3)
        last = int(rng.integers(0, length))
        if len(annotated) == 0:
            continue
        phase = last % stride
        later = annotated[annotated >= phase]
        grid = {slot: later[i] for slot, i in keyframes_on_grid(later - phase, stride, length).tolist()}
        shown = np.arange(last - 3 * stride, last + 1, stride)
        found = annotated_at(shown, annotated, stride)
        for frame, position in zip(shown.tolist(), found.tolist(), strict=True):
            expected = grid.get((frame - phase) // stride) if frame >= 0 else None
            assert (None if position < 0 else annotated[position]) == expected


@pytest.mark.parametrize("seed", range(12))
def test_every_slot_is_streamed_once_and_all_ranks_take_equally_many_steps(seed):
    rng = np.random.default_rng(seed)
    slots = [rng.integers(1, 40, int(rng.integers(1, 4))).tolist() for _ in range(int(rng.integers(0, 15)))]
    lanes, chunk, world_size = (int(n) for n in rng.integers(1, 6, 3))
    ranks = [stream_chunks(slots, lanes, chunk, rank, world_size) for rank in range(world_size)]
    assert len({len(steps) for steps in ranks}) == 1
    seen = []
    for steps in ranks:
        assert all(len(step) == lanes for step in steps)
        for lane in range(lanes):
            pieces = [step[lane] for step in steps]
            ended = [piece.valid == 0 for piece in pieces]
            assert ended == sorted(ended)  # a lane that has run out stays empty
            for before, after in pairwise(pieces):
                if after.valid and after.start:  # a video goes on without gaps on the lane it started on
                    assert (after.video, after.phase) == (before.video, before.phase)
                    assert after.start == before.start + before.valid and before.valid == chunk
                elif after.valid and after.phase:  # the streams of a video follow each other
                    assert (after.video, after.phase) == (before.video, before.phase + 1)
            seen += [(p.video, p.phase, p.start + i) for p in pieces for i in range(p.valid)]
    streams = [(video, phase, length) for video, of_video in enumerate(slots) for phase, length in enumerate(of_video)]
    assert sorted(seen) == [(video, phase, slot) for video, phase, length in streams for slot in range(length)]


def test_lanes_are_balanced():
    steps = stream_chunks([[8]] * 12, lanes=3, chunk=4, rank=1, world_size=2)
    assert len(steps) == 4  # 12 videos of 2 chunks on 6 lanes
    assert all(piece.valid == 4 for step in steps for piece in step)


def test_impossible_streams_are_refused():
    for arguments in ({"lanes": 0, "chunk": 1}, {"lanes": 1, "chunk": 0}, {"lanes": 1, "chunk": 1, "rank": 1}):
        with pytest.raises(ValueError, match=r"at least 1|is not one of"):
            stream_chunks([[3]], **arguments)


def test_slots_cover_the_last_sampled_frame():
    assert [num_slots(n, 4) for n in (1, 4, 5, 8, 9)] == [1, 1, 2, 2, 3]
