"""Windows cut out of untrimmed videos: steps at regular times, and the segments that a window shows.

A step is a stored feature, or the frame that is on screen in the middle of the step. Step k lasts from
``first_seconds + (k - 1/2) * step_seconds`` for ``step_seconds``: at 10 steps a second, frames of 30 a second and
``first_seconds = 0.05``, step 0 lasts from 0 to 0.1 s and shows frame 1.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.annotations.features import FeatureArray, num_features, read_features
from datamodules.annotations.segment_source import NO_SPANS, AnnotatedSegments
from datamodules.batches import SegmentBatch
from datamodules.collate import stack_frames
from datamodules.frames import FrameFacts, FrameStore
from datamodules.indexing import sliding_windows
from datamodules.samplers import STAND_IN, Request
from datamodules.transforms import ClipTransform


class SteppedVideo(NamedTuple):
    """A video whose time has been divided into N steps."""

    video: AnnotatedSegments
    """Its duration is known."""
    num_steps: int
    first_seconds: float
    """Middle of step 0."""
    step_seconds: float
    frames: np.ndarray | None
    """(N,) int64, the raw frame of each step; None for features."""

    def times(self, start: int, count: int) -> np.ndarray:
        """(count,) seconds, the middles of steps from ``start`` on, also of those after the end."""
        return self.first_seconds + self.step_seconds * np.arange(start, start + count)


def step_frames(video: AnnotatedSegments, facts: FrameFacts, frame_rate: float | None) -> SteppedVideo:
    """Divide a video of frames into steps, ``frame_rate`` of them a second; None for as many as it has frames."""
    times = facts.times
    period = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.04
    step = period if frame_rate is None else 1 / frame_rate
    length = times[-1] + period
    count = max(1, round(length / step))
    middles = step * (np.arange(count) + 0.5)
    # A time stamp that equals the middle but for rounding belongs to it.
    frames = np.clip(np.searchsorted(times, middles + 1e-6, side="right") - 1, 0, len(times) - 1)
    duration = length if video.duration is None else video.duration
    return SteppedVideo(video._replace(duration=float(duration)), count, step / 2, step, frames)


def step_features(video: AnnotatedSegments, resize_steps: int | None) -> SteppedVideo:
    """Steps of a video of features: one each, or ``resize_steps`` that cover the same time."""
    array = video.media
    count = num_features(array)
    if count == 0:
        raise ValueError(f"{array} holds no feature")
    first, step = array.first_seconds, array.step_seconds
    # Beyond the middle of the last feature lies what lies before the middle of the first.
    duration = 2 * first + step * (count - 1) if video.duration is None else video.duration
    if resize_steps is not None:
        start, step, count = first - step / 2, step * count / resize_steps, resize_steps
        first = start + step / 2
    return SteppedVideo(video._replace(duration=float(duration)), count, first, step, None)


def visible_segments(segments: np.ndarray, begin: float, end: float, min_visibility: float) -> np.ndarray:
    """Which of (n, 2) segments a window from ``begin`` to ``end`` shows: (n,) bool.

    Shown is one of which at least ``min_visibility`` lies inside, of a segment longer than the window so much of the
    window: otherwise the inside of a long action would pass for background.
    """
    inside = np.minimum(segments[:, 1], end) - np.maximum(segments[:, 0], begin)
    whole = np.minimum(segments[:, 1] - segments[:, 0], end - begin)
    return (inside > 0) & (inside >= min_visibility * whole - 1e-9)


class StepWindow(NamedTuple):
    """A window of one video, from step ``start`` on."""

    video: int
    start: int | None
    """None for one that is drawn anew each time, among those that show a segment."""
    length: int
    """Steps, also of those after the end of a short video."""
    seen: int = 0
    """Steps below this one have been shown by earlier windows."""
    is_last: bool = False


def training_windows(
    videos: Sequence[SteppedVideo], length: int, overlap: float | None, min_visibility: float
) -> list[StepWindow]:
    """Windows that show at least one segment: sliding ones, or without ``overlap`` one a video, drawn each time."""
    windows = []
    for number, video in enumerate(videos):
        if overlap is not None:
            starts = sliding_windows(video.num_steps, length, overlap)
            starts = starts[_showing_something(video, starts, length, min_visibility)]
            windows += [StepWindow(number, start, length) for start in starts.tolist()]
        elif len(_random_starts(video, length, min_visibility)):
            windows.append(StepWindow(number, None, length))
    return windows


def evaluation_windows(videos: Sequence[SteppedVideo], length: int | None, overlap: float) -> list[list[StepWindow]]:
    """For each video the windows that cover it; without ``length`` a single one."""
    windows = []
    for number, video in enumerate(videos):
        size = length or video.num_steps
        starts = sliding_windows(video.num_steps, size, overlap).tolist()
        seen = [0] + [start + size for start in starts[:-1]]
        windows.append(
            [
                StepWindow(number, start, size, before, start == starts[-1])
                for start, before in zip(starts, seen, strict=True)
            ]
        )
    return windows


def _random_starts(video: SteppedVideo, length: int, min_visibility: float) -> np.ndarray:
    """All steps that a training window may begin with."""
    starts = np.arange(max(video.num_steps - length, 0) + 1)
    return starts[_showing_something(video, starts, length, min_visibility)]


def _showing_something(video: SteppedVideo, starts: np.ndarray, length: int, min_visibility: float) -> np.ndarray:
    """(S,) bool: whether a window from each start shows at least one segment."""
    shown = np.zeros(len(starts), dtype=bool)
    length = min(length, video.num_steps)
    begins = video.first_seconds + video.step_seconds * (starts - 0.5)
    ends = begins + video.step_seconds * length
    for segment in video.video.segments:
        inside = np.minimum(segment[1], ends) - np.maximum(segment[0], begins)
        whole = min(segment[1] - segment[0], video.step_seconds * length)
        shown |= (inside > 0) & (inside >= min_visibility * whole - 1e-9)
    return shown


class Augmentation(NamedTuple):
    """What happens to the frames of a window, alike for all of them."""

    crop_size: int | None
    """Side of the square that is cut out; None keeps frames whole."""
    horizontal_flip: float = 0.0
    """Probability of mirroring."""
    colour: ClipTransform | None = None

    def __call__(self, frames: np.ndarray, seed: int | None) -> np.ndarray:
        """(T, h, w, 3) uint8; without a seed the square comes from the middle, and nothing else happens."""
        rng = None if seed is None else np.random.default_rng(seed)
        if self.crop_size is not None:
            room = np.asarray(frames.shape[1:3]) - self.crop_size
            top, left = (room // 2 if rng is None else rng.integers(0, room + 1)).tolist()
            frames = frames[:, top : top + self.crop_size, left : left + self.crop_size]
        if rng is not None:
            if rng.random() < self.horizontal_flip:
                frames = frames[:, :, ::-1]
            if self.colour is not None:
                frames, *_ = self.colour(np.ascontiguousarray(frames), [], [], seed)
        return np.ascontiguousarray(frames)


class SegmentWindows(Dataset):
    """Batches of windows, see ``SegmentBatch``.

    Args:
        videos: all of frames or all of features.
        windows: what a request's index counts.
        store: of the frames; None for features.
        augmentation: of the frames.
        min_visibility: see ``visible_segments``.
    """

    def __init__(
        self,
        videos: Sequence[SteppedVideo],
        windows: Sequence[StepWindow],
        store: FrameStore | None,
        augmentation: Augmentation,
        min_visibility: float,
    ) -> None:
        self.videos, self.windows, self.store = videos, windows, store
        self.augmentation = augmentation
        self.min_visibility = min_visibility
        self._resized: OrderedDict[int, np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, requests: Sequence[Request]) -> SegmentBatch:
        windows, pixels = [], []
        for request in requests:
            window = self.windows[max(request.index, 0)]
            if window.start is None:
                starts = _random_starts(self.videos[window.video], window.length, self.min_visibility)
                window = window._replace(start=int(np.random.default_rng(request.seed).choice(starts)))
            windows.append(window)
            pixels.append(self._read(window, request.seed))
        length = max(window.length for window in windows)
        stepped = [self.videos[window.video] for window in windows]
        times = np.stack([v.times(w.start, length) for v, w in zip(stepped, windows, strict=True)])
        steps = np.asarray([window.start for window in windows])[:, None] + np.arange(length)
        mask = steps < np.asarray([min(v.num_steps, w.start + w.length) for v, w in zip(stepped, windows, strict=True)])[:, None]
        shown = [self._shown(v, w) for v, w in zip(stepped, windows, strict=True)]
        features = frames = image_sizes = None
        if self.store is None:
            features = torch.from_numpy(np.stack([_padded(values, length, axis=1) for values in pixels]))
        else:
            frames, image_sizes = stack_frames([_padded(values, length, axis=0) for values in pixels])
        return SegmentBatch(
            features=features,
            frames=frames,
            flow=None,
            mask=torch.from_numpy(mask),
            is_new=torch.from_numpy(mask & (steps >= np.asarray([window.seen for window in windows])[:, None])),
            image_sizes=image_sizes,
            times=torch.from_numpy(times),
            step_seconds=torch.tensor([video.step_seconds for video in stepped], dtype=torch.float64),
            segments=tuple(torch.from_numpy(segments) for segments, _ in shown),
            labels=tuple(torch.from_numpy(labels) for _, labels in shown),
            video_segments=tuple(torch.from_numpy(video.video.segments) for video in stepped),
            video_labels=tuple(torch.from_numpy(video.video.labels) for video in stepped),
            video_ambiguous=tuple(torch.from_numpy(video.video.ambiguous) for video in stepped),
            video_ids=tuple(
                "" if request.index == STAND_IN else video.video.video_id
                for request, video in zip(requests, stepped, strict=True)
            ),
            durations=torch.tensor([video.video.duration for video in stepped], dtype=torch.float64),
            is_last=torch.tensor([window.is_last for window in windows]),
        )
