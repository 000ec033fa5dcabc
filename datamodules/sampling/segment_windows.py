"""Windows cut out of untrimmed videos: steps at regular times, and the segments that a window shows.

A step is a stored feature, or the frame that is on screen in the middle of the step. Step k begins at ``first_seconds +
(k - 1/2) * step_seconds`` and lasts ``step_seconds``. With 10 steps and 30 frames per second and ``first_seconds =
0.05``, step 0 lasts from 0 to 0.1 s and shows frame 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import Dataset

from datamodules.annotations.features import FeatureArray, num_features, read_features
from datamodules.annotations.segment_source import AnnotatedSegments
from datamodules.batches import SegmentBatch
from datamodules.errors import UserError
from datamodules.flow.store import FlowStore
from datamodules.frames.store import FrameFacts, FrameStore
from datamodules.sampling.collate import stack_flow, stack_frames
from datamodules.sampling.indexing import sliding_windows
from datamodules.sampling.samplers import STAND_IN, Request
from datamodules.sampling.transforms import ClipTransform, load_albumentations


class SteppedVideo(NamedTuple):
    """A video whose time has been divided into N steps."""

    video: AnnotatedSegments
    """The video, of known duration."""
    num_steps: int
    first_seconds: float
    """Middle of step 0."""
    step_seconds: float
    frames: np.ndarray | None
    """(N,) int64, the raw frame of each step; None for features."""

    def times(self, start: int, count: int) -> np.ndarray:
        """(count,) seconds, the middles of steps from ``start`` on, also of those after the end."""
        return self.first_seconds + self.step_seconds * np.arange(start, start + count)

    def span(self, start: int | np.ndarray, length: int) -> tuple[float | np.ndarray, float | np.ndarray]:
        """Seconds at which windows of ``length`` steps begin and end, those after the end of the video left out."""
        stop = np.minimum(start + length, self.num_steps)
        return tuple(self.first_seconds + self.step_seconds * (edge - 0.5) for edge in (start, stop))

    def flow(self, store: FlowStore, start: int, stop: int) -> np.ndarray:
        """(stop - start, 2, h, w), the flow that leads to steps; zero where a cut lies between a step and the last."""
        flow = store.get(self.video.media, self.frames, start, stop)
        shots = np.searchsorted(self.video.cuts, self.frames, side="right")  # a cut is the first frame of its shot
        flow[np.diff(shots, prepend=shots[0])[start:stop] > 0] = 0
        return flow


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
        raise UserError("holds no feature", where=str(array))
    first, step = array.first_seconds, array.step_seconds
    # Beyond the middle of the last feature lies what lies before the middle of the first.
    duration = 2 * first + step * (count - 1) if video.duration is None else video.duration
    if resize_steps is not None:
        start, step, count = first - step / 2, step * count / resize_steps, resize_steps
        first = start + step / 2
    return SteppedVideo(video._replace(duration=float(duration)), count, first, step, None)


def visible(segments: np.ndarray, begin: float | np.ndarray, end: float | np.ndarray, least: float) -> np.ndarray:
    """Return which segments (..., 2) windows from ``begin`` to ``end`` show: bool of the common shape.

    A segment is shown if at least the fraction ``least`` of it lies inside. Of a segment longer than the window that
    fraction of the window counts: otherwise the middle of a long action would pass for background.
    """
    inside = np.minimum(segments[..., 1], end) - np.maximum(segments[..., 0], begin)
    whole = np.minimum(segments[..., 1] - segments[..., 0], end - begin)
    return (inside > 0) & (inside >= least * whole - 1e-9)


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

    @property
    def stop(self) -> int:
        """The step after the last."""
        return self.start + self.length


def training_windows(
    videos: Sequence[SteppedVideo], length: int, overlap: float | None, min_visibility: float
) -> list[StepWindow]:
    """Return windows that show a segment: sliding ones, or without ``overlap`` one per video, drawn each time."""
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
    """Return the windows that cover each video; without ``length`` a single one."""
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
    """Return all steps that a training window may begin with."""
    starts = np.arange(max(video.num_steps - length, 0) + 1)
    return starts[_showing_something(video, starts, length, min_visibility)]


def _showing_something(video: SteppedVideo, starts: np.ndarray, length: int, min_visibility: float) -> np.ndarray:
    """(S,) bool: whether a window from each start shows at least one segment."""
    begins, ends = video.span(starts, length)
    shown = np.zeros(len(starts), dtype=bool)
    for segment in video.video.segments:  # of all at once an hour of video would make hundreds of MiB
        shown |= visible(segment, begins, ends, min_visibility)
    return shown


class Augmentation(NamedTuple):
    """Transformation of the frames of a window, the same for all of them."""

    crop_size: int | None
    """Side of the square that is cut out; None keeps frames whole."""
    horizontal_flip: float = 0.0
    """Probability of mirroring."""
    colour: ClipTransform | None = None

    def __call__(self, frames: np.ndarray, seed: int | None) -> np.ndarray:
        """(T, h, w, 3) uint8; without a seed the square comes from the middle, and nothing else happens."""
        rows, columns, mirrored = self._place(frames.shape[1:3], seed)
        frames = frames[:, rows, columns]
        if mirrored:
            frames = frames[:, :, ::-1]
        if self.colour is not None and seed is not None:
            frames, *_ = self.colour(np.ascontiguousarray(frames), [], [], seed)
        return np.ascontiguousarray(frames)

    def of_flow(self, flow: np.ndarray, seed: int | None) -> np.ndarray:
        """(T, 2, h, w), x then y: what happens to its frames; in a mirror what goes right goes left."""
        rows, columns, mirrored = self._place(flow.shape[2:], seed)
        flow = flow[:, :, rows, columns]
        if mirrored:
            flow = flow[..., ::-1] * np.asarray([-1, 1], flow.dtype)[:, None, None]
        return np.ascontiguousarray(flow)

    def _place(self, size: tuple[int, int], seed: int | None) -> tuple[slice, slice, bool]:
        """Rows and columns that are kept, and whether they are mirrored."""
        rng = None if seed is None else np.random.default_rng(seed)
        rows = columns = slice(None)
        if self.crop_size is not None:
            room = np.asarray(size) - self.crop_size
            top, left = (room // 2 if rng is None else rng.integers(0, room + 1)).tolist()
            rows, columns = slice(top, top + self.crop_size), slice(left, left + self.crop_size)
        return rows, columns, rng is not None and rng.random() < self.horizontal_flip


class SegmentWindows(Dataset):
    """Batches of windows, see ``SegmentBatch``.

    Args:
        videos: all of frames or all of features.
        windows: what a request's index counts.
        store: of the frames; None for features.
        augmentation: of the frames.
        min_visibility: see ``visible``.
        resize_steps: features of a video are interpolated to so many.
        flow: optical flow of the frames; None leaves it out.
    """

    def __init__(
        self,
        videos: Sequence[SteppedVideo],
        windows: Sequence[StepWindow],
        store: FrameStore | None,
        augmentation: Augmentation,
        min_visibility: float,
        resize_steps: int | None = None,
        flow: FlowStore | None = None,
    ) -> None:
        self.videos, self.windows, self.store = videos, windows, store
        self.augmentation = augmentation
        self.min_visibility = min_visibility
        self.resize_steps = resize_steps
        self.flow = flow
        if augmentation.colour is not None:
            load_albumentations()

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, requests: Sequence[Request]) -> SegmentBatch:
        windows = [self._placed(request) for request in requests]
        stepped = [self.videos[window.video] for window in windows]
        counted = [request.index != STAND_IN for request in requests]
        length = max(window.length for window in windows)
        steps = np.asarray([window.start for window in windows])[:, None] + np.arange(length)  # (B, T)
        stops = [min(video.num_steps, window.stop) for video, window in zip(stepped, windows, strict=True)]
        mask = steps < np.asarray(stops)[:, None]
        is_new = mask & (steps >= np.asarray([window.seen for window in windows])[:, None])
        shown = [self._shown(video, window) for video, window in zip(stepped, windows, strict=True)]

        features = frames = flow = image_sizes = None
        if self.store is None:
            values = [
                self._features(video, w.start, stop) for video, w, stop in zip(stepped, windows, stops, strict=True)
            ]
            features = torch.from_numpy(np.stack([_padded(value, length, axis=1) for value in values]))
        else:
            values = [
                self.augmentation(self.store.get(video.video.media, video.frames[window.start : stop]), request.seed)
                for video, window, stop, request in zip(stepped, windows, stops, requests, strict=True)
            ]
            frames, image_sizes = stack_frames([_padded(value, length, axis=0) for value in values])
        if self.flow is not None:
            values = [
                self.augmentation.of_flow(video.flow(self.flow, window.start, stop), request.seed)
                for video, window, stop, request in zip(stepped, windows, stops, requests, strict=True)
            ]
            flow = stack_flow([_padded(value, length, axis=0) for value in values], frames.shape[-2:])

        return SegmentBatch(
            features=features,
            frames=frames,
            flow=flow,
            mask=torch.from_numpy(mask),
            is_new=torch.from_numpy(is_new),
            image_sizes=image_sizes,
            times=torch.from_numpy(
                np.stack([video.times(window.start, length) for video, window in zip(stepped, windows, strict=True)])
            ),
            step_seconds=torch.tensor([video.step_seconds for video in stepped], dtype=torch.float64),
            segments=tuple(segments for segments, _ in shown),
            labels=tuple(labels for _, labels in shown),
            video_segments=tuple(torch.from_numpy(video.video.segments) for video in stepped),
            video_labels=tuple(torch.from_numpy(video.video.labels) for video in stepped),
            video_ambiguous=tuple(torch.from_numpy(video.video.ambiguous) for video in stepped),
            video_ids=tuple(v.video.video_id if counts else "" for v, counts in zip(stepped, counted, strict=True)),
            durations=torch.tensor([video.video.duration for video in stepped], dtype=torch.float64),
            is_last=torch.tensor([w.is_last and counts for w, counts in zip(windows, counted, strict=True)]),
        )

    def _placed(self, request: Request) -> StepWindow:
        """The window that a request means, its start drawn if it has none. One that stands in is the first."""
        window = self.windows[0 if request.index == STAND_IN else request.index]
        if window.start is None:
            starts = _random_starts(self.videos[window.video], window.length, self.min_visibility)
            rng = np.random.default_rng([request.seed, 2])  # 2: not the augmentation's, which would follow the start
            window = window._replace(start=int(rng.choice(starts)))
        return window

    def _features(self, video: SteppedVideo, start: int, stop: int) -> np.ndarray:
        """(C, stop - start) float32."""
        array: FeatureArray = video.video.media
        if self.resize_steps is None:
            return read_features(array, start, stop)
        whole = torch.from_numpy(read_features(array, 0, num_features(array)))[None]
        return interpolate(whole, self.resize_steps, mode="linear")[0, :, start:stop].numpy()

    def _shown(self, video: SteppedVideo, window: StepWindow) -> tuple[Tensor, Tensor]:
        """The segments that a window shows, cut to it, and their labels."""
        begin, end = video.span(window.start, window.length)
        segments = video.video.segments
        chosen = visible(segments, begin, end, self.min_visibility)
        return torch.from_numpy(segments[chosen].clip(begin, end)), torch.from_numpy(video.video.labels[chosen])


def _padded(values: np.ndarray, length: int, axis: int) -> np.ndarray:
    """Pad with zeros after the last step, up to ``length`` steps."""
    missing = length - values.shape[axis]
    return np.pad(values, [(0, missing if a == axis else 0) for a in range(values.ndim)]) if missing else values
