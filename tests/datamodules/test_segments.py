"""Windows of untrimmed videos: what they show, and that evaluation shows everything once."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.annotations.features import FeatureArray, FeatureFolder
from datamodules.annotations.segment_source import NO_SPANS, AnnotatedSegments, SegmentSource
from datamodules.annotations.thumos14 import Thumos14
from datamodules.flow.methods import DisFlow, RaftFlow
from datamodules.flow.store import FlowSettings
from datamodules.frames.store import FrameFacts
from datamodules.puppets import Puppets
from datamodules.puppets.segments import PuppetSegments
from datamodules.sampling.samplers import STAND_IN, Request, VideoWindows
from datamodules.sampling.segment_windows import (
    Augmentation,
    SegmentWindows,
    SteppedVideo,
    StepWindow,
    step_features,
    step_frames,
    visible,
)
from datamodules.segments import SegmentDataModule
from tests.datamodules.miniature import FPS, assert_same_batch, numbered_frames, read_numbers
from tests.datamodules.moving import moving_frames
from tests.datamodules.written_videos import write_video
from tests.flat_data import segment_data

DATA = Path(__file__).parents[3] / "shared/data/thumos14"
CHANNELS = 3


class StoredFeatures(SegmentSource):
    """Videos of features whose channel 0 is their number and channel 1 the number of the video.

    Feature k stands for (k + 1) * 0.5 s. Segments are given a video, all of class 0 but the last, which is of class 1.
    """

    def __init__(self, folder: Path, lengths, segments, training=1, durations=None) -> None:
        self.folder, self.lengths, self.segments, self.training = folder, lengths, segments, training
        self.durations = durations or [None] * len(lengths)

    def prepare(self) -> None:
        for number, length in enumerate(self.lengths):
            values = np.zeros((length, CHANNELS), np.float32)
            values[:, 0], values[:, 1] = np.arange(length), number
            np.save(self.folder / f"video_{number}.npy", values)

    def class_names(self):
        return ("walk", "wave")

    def videos(self, split):
        numbers = range(self.training) if split == "train" else range(self.training, len(self.lengths))
        return tuple(self._video(number) for number in numbers)

    def _video(self, number):
        segments = np.asarray(self.segments[number], np.float64).reshape(-1, 2)
        labels = np.zeros(len(segments), np.int64)
        labels[-1:] = 1
        array = FeatureArray((self.folder / f"video_{number}.npy",), 0.5, 0.5)
        spans = np.asarray([[1.0, 2.0]]) if number == 1 else NO_SPANS
        return AnnotatedSegments(f"video_{number}", array, self.durations[number], segments, labels, spans)

    def evaluated_on(self):
        return "stored features"


def opened(source, stage="fit", **arguments) -> SegmentDataModule:
    source.prepare()
    data = segment_data(source, **({"window_steps": 8, "batch_size": 2} | arguments))
    data.prepare_data()
    data.setup(stage)
    return data


@pytest.fixture
def source(tmp_path):
    segments = [[[2.0, 4.0], [9.0, 11.0]], [[1.0, 3.0]], [[5.0, 9.0], [0.5, 1.0]], []]
    return StoredFeatures(tmp_path, (40, 20, 30, 5), segments)


# --- arithmetic ------------------------------------------------------------------------------------------------------


def test_a_window_shows_what_lies_in_it_for_the_better_part():
    segments = np.array([[0.0, 4.0], [3.0, 7.0], [4.0, 8.0], [10.0, 11.0], [-50.0, 50.0], [5.0, 100.0], [8.0, 100.0]])
    shown = visible(segments, 0.0, 10.0, 0.5)
    # The last two are longer than the window: of its ten seconds they fill 5 and 2.
    assert shown.tolist() == [True, True, True, False, True, True, False]
    assert visible(segments, 0.0, 10.0, 0.0).tolist() == [True, True, True, False, True, True, True]
    assert visible(segments, 2.0, 12.0, 0.5)[0] and not visible(segments, 2.0 + 1e-6, 12.0, 0.5)[0]


def test_frames_are_those_on_screen_in_the_middle_of_a_step():
    video = AnnotatedSegments("x", Path("x.mp4"), None, NO_SPANS, np.empty(0, np.int64))
    thirty = step_frames(video, FrameFacts(np.arange(90) / 30, (4, 4), (4, 4)), 10.0)
    assert thirty.frames.tolist() == list(range(1, 90, 3)) and thirty.num_steps == 30
    assert (thirty.first_seconds, thirty.step_seconds) == (0.05, 0.1) and thirty.video.duration == pytest.approx(3)
    every = step_frames(video, FrameFacts(np.arange(90) / 30, (4, 4), (4, 4)), None)
    assert every.frames.tolist() == list(range(90))
    # A frame that stays on screen for a second is seen ten times.
    gap = step_frames(video, FrameFacts(np.array([0, 0.1, 1.1, 1.2]), (4, 4), (4, 4)), 10.0)
    assert gap.frames[:12].tolist() == [0] + [1] * 10 + [2]
    one = step_frames(video, FrameFacts(np.array([0.0]), (4, 4), (4, 4)), 10.0)
    assert one.num_steps == 1 and one.frames.tolist() == [0]


def test_resized_features_cover_the_same_time(source):
    source.prepare()
    plain, resized = (step_features(source.videos("train")[0], steps) for steps in (None, 10))
    assert plain.span(0, 40) == resized.span(0, 10) == (0.25, 20.25)
    assert resized.num_steps == 10 and resized.step_seconds == 2.0 and resized.first_seconds == 1.25
    batch = next(iter(opened(source, resize_steps=10, window_steps=10, batch_size=1).train_dataloader()))
    # Features 0..39 in groups of four: linear interpolation takes the middle of the middle two.
    torch.testing.assert_close(batch.features[0, 0], 4 * torch.arange(10.0) + 1.5)


def test_whole_videos_go_to_one_rank_in_order_and_all_ranks_take_as_many_batches():
    windows, kinds = [3, 1, 7, 2, 2], np.asarray([0, 1, 0, 1, 0])
    for world_size in (1, 2, 3, 7):
        shares = [[list(b) for b in VideoWindows(windows, kinds, 2, rank, world_size)] for rank in range(world_size)]
        assert len({len(share) for share in shares}) == 1
        indices = [[r.index for batch in share for r in batch if r.index != STAND_IN] for share in shares]
        assert sorted(index for share in indices for index in share) == list(range(15))
        video_of = np.repeat(range(5), windows)
        owners = [set(video_of[share].tolist()) if share else set() for share in indices]
        assert sum(map(len, owners)) == 5
        for share in indices:
            starts = np.flatnonzero(np.diff(video_of[share])) + 1 if share else []
            for part in np.split(np.asarray(share, int), starts):
                assert (np.diff(part) == 1).all()
        assert all(1 <= len(batch) <= 2 for share in shares for batch in share)
        of_batches = [{kinds[video_of[r.index]] for r in b if r.index != STAND_IN} for share in shares for b in share]
        assert all(len(of_batch) <= 1 for of_batch in of_batches)


# --- batches of features ---------------------------------------------------------------------------------------------


def test_constructors_touch_no_disk(tmp_path):
    data = segment_data(StoredFeatures(tmp_path / "absent", (4,), [[]]), cache=tmp_path / "cache")
    assert data.num_classes == 2 and data.evaluated_on == "stored features"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("train_windows", ["random", "sliding"])
def test_a_training_window_shows_a_segment_and_knows_its_times(source, train_windows):
    loader = opened(source, train_windows=train_windows, windows_per_epoch=40, batch_size=4).train_dataloader()
    starts = set()
    for batch in loader:
        assert batch.features.shape == (4, CHANNELS, 8) and batch.features.dtype == torch.float32
        assert batch.frames is batch.flow is batch.image_sizes is None
        assert batch.mask.all() and batch.is_new.all() and not batch.is_last.any()
        # Feature k stands for (k + 1) / 2 seconds.
        torch.testing.assert_close(batch.times, (batch.features[:, 0].double() + 1) / 2)
        assert batch.step_seconds.tolist() == [0.5] * 4 and batch.durations.tolist() == [20.5] * 4
        for window, (segments, labels) in enumerate(zip(batch.segments, batch.labels, strict=True)):
            begin, end = batch.times[window, 0] - 0.25, batch.times[window, -1] + 0.25
            expected = [
                [max(s, begin), min(e, end), label]
                for s, e, label in [(2.0, 4.0, 0), (9.0, 11.0, 1)]
                if min(e, end) - max(s, begin) >= 1.0
            ]
            assert (
                expected
                and [[*s, label] for s, label in zip(segments.tolist(), labels.tolist(), strict=True)] == expected
            )
            assert segments.dtype == torch.float64 and labels.dtype == torch.int64
            starts.add(int(batch.features[window, 0, 0]))
        assert all(whole.tolist() == [[2, 4], [9, 11]] for whole in batch.video_segments)
    # The window from step k on lasts from k/2 + 1/4 to k/2 + 17/4 s, and must show a second of a segment.
    allowed = {k for k in range(33) if k <= 5 or 12 <= k <= 19}
    if train_windows == "sliding":
        assert starts == {k for k in allowed if k % 2 == 0}
    else:
        assert starts <= allowed and len(starts) >= 10


def test_random_windows_are_drawn_anew_each_epoch_and_the_same_with_workers(source):
    loader = opened(source, windows_per_epoch=6).train_dataloader()
    epochs = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        epochs.append(list(loader))
    assert [b.times.tolist() for b in epochs[0]] != [b.times.tolist() for b in epochs[1]]
    parallel = opened(source, windows_per_epoch=6, num_workers=1).train_dataloader()
    for ours, theirs in zip(epochs[0], parallel, strict=True):
        assert_same_batch(ours, theirs)


def test_data_sets_travel_to_spawned_workers(source):
    loader = opened(source).train_dataloader()
    assert_same_batch(next(iter(loader)), pickle.loads(pickle.dumps(loader.dataset))[next(iter(loader.sampler))])


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.75])
@pytest.mark.parametrize("window", [8, 0])
def test_evaluation_shows_every_step_as_new_once(source, overlap, window):
    loader = opened(
        source, "validate", eval_window_steps=window, eval_overlap=overlap, eval_batch_size=3
    ).val_dataloader()
    new, seen, last = {}, {}, []
    for batch in loader:
        for row, name in enumerate(batch.video_ids):
            steps = batch.features[row, 0]
            assert (batch.features[row, :, ~batch.mask[row]] == 0).all()
            assert name not in last, "nothing comes after the last window of a video"
            new.setdefault(name, []).extend(steps[batch.is_new[row]].int().tolist())
            seen.setdefault(name, []).extend(steps[batch.mask[row]].int().tolist())
            assert (batch.features[row, 1, batch.mask[row]] == int(name[-1])).all()
            torch.testing.assert_close(batch.times[row].diff(), torch.full((batch.times.shape[1] - 1,), 0.5).double())
            if batch.is_last[row]:
                last.append(name)
    assert sorted(last) == ["video_1", "video_2", "video_3"]
    for name, length in (("video_1", 20), ("video_2", 30), ("video_3", 5)):
        assert new[name] == list(range(length))
        assert (len(seen[name]) > length) == (window == 8 and length > 8)  # also without overlap the last one goes back


def test_evaluation_carries_the_whole_truth_beside_what_a_window_shows(source):
    batches = list(opened(source, "validate", eval_overlap=0.0, batch_size=1).val_dataloader())
    windows = [b for b in batches if b.video_ids == ("video_2",)]
    assert all(b.video_segments[0].tolist() == [[5, 9], [0.5, 1]] for b in windows)
    assert windows[0].segments[0].tolist() == [[0.5, 1]] and windows[0].labels[0].tolist() == [1]
    assert windows[1].segments[0].tolist() == [[5, 8.25]] and windows[1].labels[0].tolist() == [0]
    (ambiguous,) = {tuple(map(tuple, b.video_ambiguous[0].tolist())) for b in batches if b.video_ids == ("video_1",)}
    assert ambiguous == ((1.0, 2.0),)


def test_two_ranks_evaluate_what_one_does_and_stand_ins_have_no_name(source, monkeypatch):
    def windows(rank, world_size):
        monkeypatch.setattr(SegmentDataModule, "rank", rank)
        monkeypatch.setattr(SegmentDataModule, "world_size", world_size)
        return list(opened(source, "validate", batch_size=1).val_dataloader())

    alone = {(b.video_ids[0], b.times[0, 0].item()) for b in windows(0, 1)}
    shares = [windows(rank, 2) for rank in range(2)]
    assert len(shares[0]) == len(shares[1])
    found = [(b.video_ids[0], b.times[0, 0].item()) for share in shares for b in share if b.video_ids[0]]
    assert len(found) == len(set(found)) and set(found) == alone
    idle = [b for share in shares for b in share if not b.video_ids[0]]
    assert len(idle) == sum(map(len, shares)) - len(alone) and not any(b.is_last.any() for b in idle)


def test_features_that_cannot_belong_to_their_videos_are_refused(tmp_path):
    source = StoredFeatures(tmp_path, (40, 40), [[[1, 2]], [[1, 2]]], durations=[41.0, 41.0])
    with pytest.raises(ValueError, match=r"0\.50 times the duration .*stride_frames or frame_rate"):
        opened(source)
    opened(StoredFeatures(tmp_path, (40, 40), [[[1, 2]], [[1, 2]]], durations=[20.0, 21.0]))


def test_segments_beyond_the_end_are_told_where_only_the_data_know_the_duration(tmp_path):
    source = StoredFeatures(tmp_path, (40, 20), [[[1, 2], [25, 30]], []])
    with pytest.warns(UserWarning, match=r"video_0 \(1 of 2, ends at 20.50 s\)"):
        data = opened(source, window_steps=40)
    (batch,) = data.train_dataloader()
    assert batch.video_segments[0].tolist() == [[1, 2], [25, 30]] and batch.segments[0].tolist() == [[1, 2]]


def test_mistakes_are_named(source, tmp_path):
    for arguments, words in (
        ({"train_windows": "all"}, "train must be one of"),
        ({"window_steps": 0}, "at least one step"),
        ({"eval_overlap": 1.0}, "overlaps"),
        ({"min_visibility": 1.5}, "min_visibility"),
        ({"frame_rate": 0.0}, "frame_rate"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ):
        with pytest.raises(ValueError, match=words):
            segment_data(source, **arguments)
    with pytest.raises(ValueError, match="call setup first"):
        segment_data(source).train_dataloader()
    with pytest.raises(ValueError, match="no training window of StoredFeatures shows a segment"):
        opened(StoredFeatures(tmp_path, (9, 9), [[], [[1, 2]]])).train_dataloader()
    (tmp_path / "a.json").write_text(
        '{"database": {"video_validation_1": {"annotations": [{"segment": [1, 2], "label": "Diving"}]}}}'
    )
    data = segment_data(Thumos14(tmp_path / "a.json"))
    with pytest.raises(ValueError, match="video_validation_1 has neither frames nor features"):
        data.setup("fit")


# --- batches of frames -----------------------------------------------------------------------------------------------


class FilmedNumbers(SegmentSource):
    """One training and one other video whose frames carry their number, at FPS frames a second."""

    def __init__(self, folder: Path, lengths=(60, 37)) -> None:
        self.folder, self.lengths = folder, lengths

    def prepare(self) -> None:
        for number, length in enumerate(self.lengths):
            path = self.folder / f"video_{number}.mp4"
            if not path.exists():
                write_video(path, numbered_frames(length), FPS)

    def class_names(self):
        return ("walk",)

    def videos(self, split):
        number = 0 if split == "train" else 1
        segments = np.array([[1.0, 3.0]])
        path = self.folder / f"video_{number}.mp4"
        return (AnnotatedSegments(path.stem, path, None, segments, np.zeros(1, np.int64)),)

    def evaluated_on(self):
        return "filmed numbers"


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    source = FilmedNumbers(tmp_path_factory.mktemp("films"))
    source.prepare()
    return source


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("frame_rate", [None, 4.0])
def test_frames_of_a_window_are_those_of_its_times(films, tmp_path, frame_rate, cached):
    cache = tmp_path / "cache" if cached else None
    data = opened(films, frame_rate=frame_rate, horizontal_flip=0.0, batch_size=1, cache=cache, eval_window_steps=12)
    for loader, length in ((data.train_dataloader(), 8), (data.val_dataloader(), 12)):
        for batch in loader:
            assert batch.features is None and batch.frames.dtype == torch.uint8
            assert batch.frames.shape == (1, length, 3, 96, 128) and batch.image_sizes.tolist() == [[96, 128]]
            count = int(batch.mask.sum())
            numbers = read_numbers(batch.frames[0, :count].permute(0, 2, 3, 1).numpy())
            # On screen at a time t is frame floor(t * FPS).
            assert numbers == np.floor(batch.times[0, :count].numpy() * FPS + 1e-6).astype(int).tolist()
            assert not batch.frames[0, count:].any()
    assert data.videos("val")[0].num_steps == (37 if frame_rate is None else 18)
    assert data.videos("val")[0].video.duration == pytest.approx(37 / FPS)
    assert (tmp_path / "cache").is_dir() == cached


class TwoSizes(FilmedNumbers):
    """Three videos to evaluate, the middle one upright."""

    def prepare(self):
        super().prepare()
        for number, size in enumerate(((64, 96), (96, 64), (64, 96))):
            write_video(self.folder / f"size_{number}.mp4", np.zeros((12, *size, 3), np.uint8), FPS)

    def videos(self, split):
        if split == "train":
            return super().videos(split)
        segments = np.array([[0.2, 0.6]])
        paths = [self.folder / f"size_{number}.mp4" for number in range(3)]
        return tuple(AnnotatedSegments(path.stem, path, None, segments, np.zeros(1, np.int64)) for path in paths)


@pytest.mark.parametrize("crop_size", [None, 32])
def test_an_evaluated_video_is_padded_as_it_would_be_alone(tmp_path, crop_size):
    source = TwoSizes(tmp_path)
    source.prepare()
    data = opened(source, frame_rate=None, eval_batch_size=6, eval_window_steps=4, crop_size=crop_size, short_side=64)
    batches = list(data.val_dataloader())
    if crop_size is None:
        assert all(list(batch.frames.shape[-2:]) == size.tolist() for batch in batches for size in batch.image_sizes)
    names = Counter(name for batch in batches for name in batch.video_ids)
    assert names == {"size_0": 4, "size_1": 4, "size_2": 4}
    assert [len(batch.video_ids) for batch in batches] == ([6, 2, 4] if crop_size is None else [6, 6])


def test_the_height_of_a_random_crop_does_not_follow_the_start_of_its_window():
    """One seed draws both, from streams of their own."""
    video = SteppedVideo(
        AnnotatedSegments("film", None, 40.0, np.array([[0.0, 40.0]]), np.zeros(1)), 400, 0.05, 0.1, None
    )
    augmentation = Augmentation(96)
    windows = SegmentWindows([video], [StepWindow(0, None, 8)], None, augmentation, 0.0)
    seeds = np.random.default_rng(0).integers(0, 2**32, 300).tolist()
    starts = [windows._placed(Request(0, seed)).start for seed in seeds]
    tops = [augmentation._place((112, 149), seed)[0].start for seed in seeds]
    assert len(set(starts)) > 100 and abs(np.corrcoef(starts, tops)[0, 1]) < 0.2


def test_one_square_and_one_flip_for_all_frames_of_a_window():
    frames = np.random.default_rng(0).integers(0, 256, (5, 12, 16, 3)).astype(np.uint8)
    middle = Augmentation(8)(frames, None)
    np.testing.assert_array_equal(middle, frames[:, 2:10, 4:12])
    corners, flips = set(), 0
    for seed in range(60):
        cut = Augmentation(8, horizontal_flip=0.5)(frames, seed)
        np.testing.assert_array_equal(cut, Augmentation(8, horizontal_flip=0.5)(frames, seed))
        places = [
            (top, left, flip)
            for top in range(5)
            for left in range(9)
            for flip in (False, True)
            if np.array_equal(frames[:, top : top + 8, left : left + 8][:, :, :: -1 if flip else 1], cut)
        ]
        ((top, left, flip),) = places
        corners.add((top, left))
        flips += flip
    assert {top for top, _ in corners} == set(range(5)) and {0, 8} <= {left for _, left in corners}
    assert 15 <= flips <= 45


def test_colour_changes_alike_for_all_frames_and_only_in_training(films):
    data = opened(films, brightness=0.5, horizontal_flip=0.0, short_side=48, crop_size=32, windows_per_epoch=2)
    batch = next(iter(data.train_dataloader()))
    assert batch.frames.shape == (2, 8, 3, 32, 32) and batch.image_sizes.tolist() == [[32, 32]] * 2
    (plain,) = opened(films, horizontal_flip=0.0, short_side=48, crop_size=32, windows_per_epoch=2).train_dataloader()
    changed = batch.frames.double().mean(dim=(2, 3, 4)) - plain.frames.double().mean(dim=(2, 3, 4))  # (B, T)
    assert (changed.abs() > 2).all() and (changed.diff(dim=0).abs() > 2).all(), "each window its own change"
    assert (changed.amax(dim=1) - changed.amin(dim=1) < 0.2 * changed.abs().amin(dim=1)).all(), "but all frames alike"
    assert data.val_dataloader().dataset.augmentation == Augmentation(32)
    with pytest.raises(ValueError, match="too small for crop_size=100; set short_side"):
        opened(films, crop_size=100)


def test_any_video_file_can_be_predicted_on(films):
    file = films.folder / "video_0.mp4"
    data = segment_data(films, window_steps=16, batch_size=1, frame_rate=None, predict_videos=[file])
    data.setup("predict")
    batches = list(data.predict_dataloader())
    assert [b.video_ids for b in batches] == [("video_0",)] * len(batches) and batches[-1].is_last.all()
    assert sum(int(b.is_new.sum()) for b in batches) == 60
    assert not any(len(b.video_segments[0]) for b in batches)


# --- optical flow ----------------------------------------------------------------------------------------------------


class MovingTextures(FilmedNumbers):
    """Videos of a texture that moves 4 pixels to the right and 2 up from each frame to the next."""

    def prepare(self) -> None:
        for number, length in enumerate(self.lengths):
            path = self.folder / f"video_{number}.mp4"
            if not path.exists():
                write_video(path, moving_frames(length, (4, -2), height=96, width=128, seed=number), FPS)


@pytest.fixture(scope="module")
def moving(tmp_path_factory):
    source = MovingTextures(tmp_path_factory.mktemp("moving"), (50, 21))
    source.prepare()
    return source


def with_flow(source, cache, stage="fit", method="dis", **arguments) -> SegmentDataModule:
    small = {"frame_rate": None, "short_side": 48, "batch_size": 1, "horizontal_flip": 0.0}
    return opened(source, stage, flow=FlowSettings(method, cache), **(small | arguments))


@pytest.mark.parametrize("crop_size", [None, 40])
def test_a_batch_has_the_flow_of_its_frames(moving, tmp_path, crop_size):
    data = with_flow(moving, tmp_path, crop_size=crop_size, windows_per_epoch=4, horizontal_flip=0.5)
    shown = set()
    for batch in data.train_dataloader():
        size = (48, 64) if crop_size is None else (40, 40)
        assert batch.image_sizes.tolist() == [list(size)] and batch.frames.shape == (1, 8, 3, 64, 64)
        assert batch.flow.shape == (1, 8, 2, 64, 64) and batch.flow.dtype == torch.float32
        height, width = size
        assert not batch.flow[..., height:, :].any() and not batch.flow[..., width:].any()
        frames = batch.frames[0, :, :, :height, :width].permute(0, 2, 3, 1).numpy()
        again = torch.from_numpy(DisFlow().between(frames))
        # What is computed of the cut and mirrored frames themselves differs only near their edges.
        inside = (..., slice(12, height - 12), slice(12, width - 12))
        difference = (again - batch.flow[0, 1:, :, :height, :width])[inside].abs()
        assert difference.median() < 0.1 and difference.quantile(0.9) < 0.5
        right = batch.flow[0, 1:, 0][inside].median()
        assert abs(abs(right) - 2) < 0.2 and abs(batch.flow[0, 1:, 1][inside].median() + 1) < 0.2
        shown.add(bool(right > 0))
    assert shown == {True, False}, "some are mirrored"


def test_the_flow_of_a_mirrored_window_is_mirrored_and_goes_the_other_way(moving, tmp_path):
    plain, mirrored = (
        next(iter(with_flow(moving, tmp_path, horizontal_flip=flip, windows_per_epoch=1).train_dataloader()))
        for flip in (0.0, 1.0)
    )
    torch.testing.assert_close(mirrored.frames[..., :64], plain.frames[..., :64].flip(-1), rtol=0, atol=0)
    expected = plain.flow[..., :64].flip(-1)
    torch.testing.assert_close(mirrored.flow[0, :, 0, :, :64], -expected[0, :, 0], rtol=0, atol=0)
    torch.testing.assert_close(mirrored.flow[0, :, 1, :, :64], expected[0, :, 1], rtol=0, atol=0)
    assert plain.flow[0, :, 0].median() * mirrored.flow[0, :, 0].median() < 0


def test_flow_is_cut_where_frames_are():
    places = np.stack(np.mgrid[:12, :16])[::-1].astype(np.float32)  # x, y of each pixel
    flow = np.repeat(places[None], 3, axis=0)
    frames = np.repeat(places.transpose(1, 2, 0)[None].astype(np.uint8), 3, axis=0)
    for seed in [None, *range(30)]:
        augmentation = Augmentation(8, horizontal_flip=0.5)
        cut, seen = augmentation.of_flow(flow, seed), augmentation(frames, seed).transpose(0, 3, 1, 2)
        mirrored = bool(seen[0, 0, 0, 0] > seen[0, 0, 0, 1])
        np.testing.assert_array_equal(cut * [[[-1 if mirrored else 1]], [[1]]], seen)
    np.testing.assert_array_equal(Augmentation(8).of_flow(flow, None), flow[:, :, 2:10, 4:12])


@pytest.mark.parametrize("stored", [True, False])
def test_windows_of_evaluation_are_slices_of_the_flow_of_their_video(moving, tmp_path, stored):
    data = with_flow(moving, tmp_path / "flow" if stored else None, "validate", eval_window_steps=8)
    (video,) = data.videos("val")
    frames = data.store.get(video.video.media, video.frames)
    whole = np.rint(DisFlow().of_steps(frames) * 16).clip(-320, 320) / 16
    for batch in data.val_dataloader():
        count = int(batch.mask.sum())
        first = round(float(batch.times[0, 0]) * FPS - 0.5)
        np.testing.assert_array_equal(batch.flow[0, :count, :, :48], whole[first : first + count])
        assert not batch.flow[0, count:].any()
        assert batch.flow[0, 0].any() == (first > 0)
    assert (tmp_path / "flow").is_dir() == stored


def test_flow_is_that_between_the_frames_that_are_sampled(moving, tmp_path):
    data = with_flow(moving, tmp_path, "validate", frame_rate=FPS / 2)
    batch = next(iter(data.val_dataloader()))
    # Every second frame, at half the size: 4 pixels to the right a step.
    assert abs(batch.flow[0, 1:, 0, 12:36, 12:52].median() - 4) < 0.3


def test_a_window_longer_than_its_video_has_no_flow_after_the_end(moving, tmp_path):
    (batch,) = with_flow(moving, tmp_path, "validate", eval_window_steps=32).val_dataloader()
    assert batch.mask.sum() == 21 and batch.flow.shape[1] == 32
    assert batch.flow[0, 20].any() and not batch.flow[0, 21:].any()


@pytest.mark.parametrize("stored", [True, False])
def test_workers_give_the_flow_that_the_process_itself_gives(moving, tmp_path, stored):
    arguments = {"cache": tmp_path if stored else None, "windows_per_epoch": 3, "crop_size": 40}
    loaders = [with_flow(moving, **arguments, num_workers=n).train_dataloader() for n in (0, 1)]
    for ours, theirs in zip(*loaders, strict=True):
        assert_same_batch(ours, theirs)


def test_preparing_computes_the_flow_of_all_splits_once(moving, tmp_path, monkeypatch):
    data = segment_data(moving, 8, frame_rate=None, short_side=48, flow=FlowSettings("dis", tmp_path / "flow"))
    assert list(tmp_path.iterdir()) == []
    data.prepare_data()
    assert sorted(file.name[:8] for file in (tmp_path / "flow").iterdir()) == ["video_0-", "video_1-"]
    monkeypatch.setattr(DisFlow, "between", None)
    for stage in ("fit", "test"):
        data.prepare_data()
        data.setup(stage)
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        assert next(iter(loader)).flow is not None


def test_flow_of_files_to_predict_on_is_not_kept(moving, tmp_path):
    file = moving.folder / "video_1.mp4"
    data = with_flow(moving, tmp_path / "flow", "predict", predict_videos=[file], eval_window_steps=0)
    kept = sorted((tmp_path / "flow").iterdir())
    (batch,) = data.predict_dataloader()
    assert batch.flow.shape == (1, 21, 2, 64, 64) and sorted((tmp_path / "flow").iterdir()) == kept
    (evaluated,) = with_flow(moving, tmp_path / "flow", "test", eval_window_steps=0).test_dataloader()
    torch.testing.assert_close(batch.flow, evaluated.flow, rtol=0, atol=0)


def test_flow_for_training_alone_is_neither_computed_nor_read_elsewhere(moving, tmp_path):
    flow = FlowSettings("dis", tmp_path / "flow", in_training_alone=True)
    data = segment_data(moving, 8, frame_rate=None, short_side=48, flow=flow)
    data.prepare_data()
    assert [file.name[:8] for file in (tmp_path / "flow").iterdir()] == ["video_0-"]
    data.setup("fit")
    data.setup("test")
    assert next(iter(data.train_dataloader())).flow is not None
    assert next(iter(data.val_dataloader())).flow is None and next(iter(data.test_dataloader())).flow is None


def test_features_have_no_flow(source, tmp_path):
    source.prepare()
    data = segment_data(source, 8, flow=FlowSettings("dis", tmp_path / "flow"))
    with pytest.raises(ValueError, match=r"video_0 has stored features, .* set data\.init_args\.flow=null"):
        data.prepare_data()
    data = segment_data(source, 8, flow=FlowSettings("dis", None))
    with pytest.raises(ValueError, match="has stored features"):
        data.setup("fit")


def test_workers_refuse_a_method_of_another_device(moving):
    method = RaftFlow(device="cuda")
    data = segment_data(moving, 8, short_side=48, num_workers=1, flow=FlowSettings(method, None))
    data.setup("fit")
    with pytest.raises(ValueError, match="worker processes cannot compute flow on cuda; set num_workers=0"):
        data.train_dataloader()


# --- data sets -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_part_of_the_training_puppets_is_their_first_and_all_are_evaluated(tmp_path):
    whole, part = PuppetSegments(tmp_path, "tiny"), PuppetSegments(tmp_path, "tiny", train_videos=3)
    whole.prepare()
    assert [video.video_id for video in part.videos("train")] == [video.video_id for video in whole.videos("train")][:3]
    assert len(part.videos("val")) == len(whole.videos("val")) == 2


@pytest.mark.slow
def test_puppets_have_segments_that_their_boxes_agree_with(tmp_path):
    source = PuppetSegments(tmp_path, "tiny", seed=3)
    data = opened(source, window_steps=32, batch_size=4, frame_rate=16.0, short_side=64, crop_size=64)
    assert data.num_classes == 10 and data.evaluated_on == "Puppets tiny, validation"
    assert [v.video.video_id for v in data.videos("val")] == ["val_0000", "val_0001"]
    boxes = {video.video_id: video for video in Puppets(tmp_path, "tiny", seed=3).videos("train")}
    for video in data.videos("train"):
        assert video.num_steps == 48 and video.frames.tolist() == list(range(48)) and video.video.duration == 3
        active = np.zeros((48, 10), bool)
        for (start, end), label in zip(video.video.segments, video.video.labels, strict=True):
            active[(video.times(0, 48) >= start) & (video.times(0, 48) < end), label] = True
        for keyframe in boxes[video.video.video_id].keyframes:
            np.testing.assert_array_equal(active[round(keyframe.timestamp * 16)], keyframe.labels.any(axis=0))
    batch = next(iter(data.train_dataloader()))
    assert batch.frames.shape == (4, 32, 3, 64, 64) and all(len(segments) for segments in batch.segments)


@pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the real annotation in {DATA}")
@pytest.mark.filterwarnings("ignore:.*begin after their end", "ignore:.*are not on disk")
def test_real_annotation_with_features_of_its_durations_makes_batches(tmp_path):
    annotation = DATA / "thumos14.actionformer.json"
    bare = Thumos14(annotation, test_list=211)
    for split, count in (("train", 6), ("test", 4)):
        for video in bare.videos(split)[:count]:
            length = int((video.duration * 30 - 16) // 4 + 1)
            np.save(tmp_path / f"{video.video_id}.npy", np.zeros((length, 4), np.float16))
    source = Thumos14(annotation, features=FeatureFolder(tmp_path, frame_rate=30), test_list=211)
    data = segment_data(source, window_steps=2304, eval_window_steps=0, batch_size=2, eval_batch_size=1)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    batches = list(data.train_dataloader())
    assert len(batches) == 3 and all(batch.features.shape == (2, 4, 2304) for batch in batches)
    assert all(len(segments) for batch in batches for segments in batch.segments)
    tested = list(data.test_dataloader())
    assert len(tested) == 4 and all(batch.is_last.all() and batch.is_new.all() for batch in tested)
    assert data.evaluated_on == "THUMOS14 test list 211, 4 of its videos"
