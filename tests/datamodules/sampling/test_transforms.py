import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from datamodules.sampling.transforms import ClipTransform

HEIGHT, WIDTH = 96, 128


def painted(boxes: np.ndarray, frames: int = 3) -> np.ndarray:
    """A clip with one bright rectangle."""
    clip = np.full((frames, HEIGHT, WIDTH, 3), 30, np.uint8)
    for x1, y1, x2, y2 in boxes.astype(int):
        clip[:, y1:y2, x1:x2] = 230
    return clip


def extent(frame: np.ndarray) -> list[int]:
    """xyxy of what is bright."""
    rows, columns = np.nonzero(frame[..., 0] > 130)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


BOX = np.asarray([[40, 24, 72, 80]], np.float32)
LABEL = np.asarray([[0, 1, 1]], np.uint8)


def test_a_flip_moves_pixels_and_boxes_alike():
    clip = np.random.default_rng(0).integers(0, 256, (3, HEIGHT, WIDTH, 3), np.uint8)
    frames, boxes, labels = ClipTransform(horizontal_flip=1.0)(clip, [BOX], [LABEL], seed=0)
    np.testing.assert_array_equal(frames, clip[:, :, ::-1])
    np.testing.assert_allclose(boxes[0], [[WIDTH - 72, 24, WIDTH - 40, 80]])
    assert labels[0].tolist() == [[0, 1, 1]] and labels[0].dtype == LABEL.dtype


@pytest.mark.parametrize("scale", [0.75, 1.0, 1.3])
def test_boxes_stay_on_what_they_bound(scale):
    transform = ClipTransform(horizontal_flip=0.5, scale_range=(scale, scale), brightness=0.1, contrast=0.1)
    for seed in range(30):
        frames, boxes, _ = transform(painted(BOX), [BOX], [LABEL], seed)
        assert frames.shape == (3, HEIGHT, WIDTH, 3)
        np.testing.assert_allclose(extent(frames[0]), boxes[0][0], atol=1.5)
        # the person whole in sight, and as much larger
        np.testing.assert_allclose(boxes[0][0, 2:] - boxes[0][0, :2], np.array([32, 56]) * scale, atol=1.5)


def test_all_frames_of_a_clip_are_treated_alike():
    transform = ClipTransform(0.5, (0.7, 1.4), brightness=0.3, contrast=0.3, saturation=0.3)
    still = np.repeat(np.random.default_rng(0).integers(0, 256, (1, HEIGHT, WIDTH, 3), np.uint8), 4, axis=0)
    for seed in range(10):
        frames, _, _ = transform(still, [BOX], [LABEL], seed)
        assert (frames == frames[:1]).all()


def test_a_seed_decides_everything():
    transform = ClipTransform(0.5, (0.7, 1.4), brightness=0.3, contrast=0.3)
    first = transform(painted(BOX), [BOX], [LABEL], seed=3)
    transform(painted(BOX), [BOX], [LABEL], seed=4)
    again = ClipTransform(0.5, (0.7, 1.4), brightness=0.3, contrast=0.3)(painted(BOX), [BOX], [LABEL], seed=3)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1][0], again[1][0])
    outcomes = {transform(painted(BOX), [BOX], [LABEL], seed)[1][0].tobytes() for seed in range(20)}
    assert len(outcomes) > 15


def test_boxes_that_a_crop_leaves_out_go_and_keyframes_keep_theirs_apart():
    left, right = np.asarray([[2, 30, 22, 60]], np.float32), np.asarray([[106, 30, 126, 60]], np.float32)
    boxes = [np.concatenate([left, right]), np.empty((0, 4), np.float32), right]
    labels = [np.asarray([[1, 0, 0], [0, 1, 0]]), np.empty((0, 3), int), np.asarray([[0, 0, 1]])]
    transform = ClipTransform(horizontal_flip=0.0, scale_range=(2.0, 2.0))
    seen = set()
    for seed in range(40):
        _, moved, kept = transform(painted(np.concatenate([left, right])), boxes, labels, seed)
        assert len(moved[1]) == 0 and kept[1].shape == (0, 3)
        names = [tuple(row) for row in kept[0].tolist()]
        seen.add(tuple(names))
        # The crop is half of the scaled clip, so left and right are never both in it.
        assert names in ([(1, 0, 0)], [(0, 1, 0)])
        assert len(kept[2]) == (names == [(0, 1, 0)])
        for rectangle in np.concatenate(moved):
            assert (rectangle >= 0).all() and (rectangle <= [WIDTH, HEIGHT, WIDTH, HEIGHT]).all()
    assert len(seen) == 2


def test_of_a_box_cut_by_the_frame_enough_must_be_visible():
    wide = np.asarray([[0, 10, 128, 90]], np.float32)  # larger than the crop: between a quarter and all of it is left
    transform = ClipTransform(horizontal_flip=0.0, scale_range=(2.0, 2.0), min_visibility=0.4)
    outcomes = [len(transform(painted(wide), [wide], [LABEL], seed)[1][0]) for seed in range(10)]
    assert outcomes == [0] * 10  # a quarter is visible at most
    lenient = ClipTransform(horizontal_flip=0.0, scale_range=(2.0, 2.0), min_visibility=0.1)
    assert all(len(lenient(painted(wide), [wide], [LABEL], seed)[1][0]) == 1 for seed in range(10))


def test_clips_without_boxes_are_transformed_too():
    empty = np.empty((0, 4), np.float32)
    transform = ClipTransform(1.0, (0.8, 1.2), brightness=0.2)
    frames, boxes, labels = transform(painted(BOX), [empty, empty], [np.empty((0, 3))] * 2, seed=0)
    assert frames.shape == (3, HEIGHT, WIDTH, 3)
    assert [b.shape for b in boxes] == [(0, 4)] * 2 and [label.shape for label in labels] == [(0, 3)] * 2


def test_boxes_that_stick_out_are_clipped():
    _frames, boxes, _ = ClipTransform(1.0)(
        painted(BOX), [np.asarray([[-10, 20, 50, 110]], np.float32)], [LABEL], seed=0
    )
    np.testing.assert_allclose(boxes[0], [[WIDTH - 50, 20, WIDTH, HEIGHT]])


def test_nothing_to_do_returns_the_clip_itself():
    clip = painted(BOX)
    frames, boxes, _ = ClipTransform(horizontal_flip=0.0)(clip, [BOX], [LABEL], seed=0)
    assert frames is clip and boxes[0] is BOX


def test_colour_alone_neither_moves_boxes_nor_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        frames, boxes, _ = ClipTransform(0.0, brightness=0.5, contrast=0.5)(painted(BOX), [BOX], [LABEL], seed=1)
    np.testing.assert_allclose(boxes[0], BOX)
    assert (frames != painted(BOX)).any()


def test_impossible_scales_are_refused():
    with pytest.raises(ValueError, match="scale_range"):
        ClipTransform(scale_range=(1.2, 0.8))


DATA_SETS = {
    "windows": """
from datamodules.sampling.windows import Window, WindowDataset
WindowDataset((), np.zeros((0, 2)), Window(8, 0, 1), 1, None, {transform})
""",
    "segments": """
from datamodules.sampling.segment_windows import Augmentation, SegmentWindows
SegmentWindows((), (), None, Augmentation(None, 0.5, {transform}), 0.5)
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("data_set", DATA_SETS)
@pytest.mark.parametrize("transform", ["ClipTransform()", "None"])
def test_what_transforms_need_is_imported_before_workers_are_forked(data_set, transform):
    """wandb watches imports and fails in a forked process; where nothing is transformed a second is saved."""
    program = f"""
import sys
import numpy as np
from datamodules.sampling.transforms import ClipTransform
{DATA_SETS[data_set].format(transform=transform)}
print("albumentations" in sys.modules)
"""
    root = Path(__file__).parents[3]
    said = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert said.stdout.strip() == str(transform != "None"), said.stderr
