"""Samples cut out of videos around their keyframes, for clip detectors and for the training of streaming ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from datamodules.annotations.source import AnnotatedVideo
from datamodules.batches import ClipBatch, TrueKeyframe, TrueTube, TrueTubes
from datamodules.errors import UserError
from datamodules.frames.maps import FeatureMaps
from datamodules.frames.store import FrameFacts, FrameStore
from datamodules.sampling.collate import ClipSample, collate_clips
from datamodules.sampling.indexing import annotated_at, keyframes_on_grid, num_slots, window_indices
from datamodules.sampling.samplers import STAND_IN, Request
from datamodules.sampling.transforms import ClipTransform, load_albumentations, mirrored_boxes
from datamodules.video.broken import BrokenVideos
from datamodules.video.listing import VideoError
from datamodules.video.picture_folder import Video
from datamodules.video.readers import nearest_frame

LATE_SECONDS = 1.0
"""Seconds after its last frame that a video may be annotated: containers and annotation tools round differently."""
REPLACEMENTS = 100
"""Other samples tried, at most, for one that cannot be read."""


class Window(NamedTuple):
    """The frames of a sample relative to its keyframe."""

    past: int
    """Frames up to and including the keyframe."""
    future: int
    """Frames after it."""
    stride: int
    """Raw frames from one to the next; 0 repeats the keyframe."""
    supervised: int = 1
    """Number of the last ``past`` frames that carry loss."""

    @property
    def keyframes(self) -> tuple[int, ...]:
        return tuple(range(self.past - self.supervised, self.past))


class TimedVideo(NamedTuple):
    """A video whose annotations have been given frame numbers."""

    video_id: str
    path: Video
    facts: FrameFacts
    frames: np.ndarray
    """(n,) int64 ascending, the raw frame nearest to each annotated moment."""
    timestamps: np.ndarray
    """(n,) float64, the annotated moments."""
    boxes: tuple[np.ndarray, ...]
    """n arrays (M, 4), xyxy as fractions."""
    labels: tuple[np.ndarray, ...]
    """n arrays (M, K) multi-hot."""
    tracks: tuple[np.ndarray | None, ...]
    """n arrays (M,) int64, whose boxes they are; None where people are not identified."""

    @property
    def shared_moments(self) -> np.ndarray:
        """Return the moments whose frame an earlier one has, (m,) float64."""
        return self.timestamps[~self.is_first_of_frame]

    @property
    def is_first_of_frame(self) -> np.ndarray:
        """Return whether each moment is the first that falls on its frame, (n,) bool."""
        return np.diff(self.frames, prepend=-1) > 0

    def boxes_in_pixels(self, keyframe: int) -> np.ndarray:
        """(M, 4) float32 in pixels of the frames that the store gives."""
        height, width = self.facts.size
        return self.boxes[keyframe] * np.asarray([width, height, width, height], np.float32)


def off_the_video(timestamps: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return which moments a video with frames at ``times`` does not show: (n,) bool."""
    return (timestamps < 0) | (timestamps > times[-1] + LATE_SECONDS)


def time_video(video: AnnotatedVideo, store: FrameStore) -> TimedVideo:
    """Give each annotated moment of a video its frame."""
    facts = store.facts(video.path)
    timestamps = np.asarray([keyframe.timestamp for keyframe in video.keyframes], np.float64)
    if off_the_video(timestamps, facts.times).any():
        raise VideoError(
            f"{video.path} is annotated from {timestamps.min():.2f} s to {timestamps.max():.2f} s, but its frames span "
            f"{facts.times[0]:.2f} s to {facts.times[-1]:.2f} s; time stamps count seconds from the start of the file"
        )
    return TimedVideo(
        video_id=video.video_id,
        path=video.path,
        facts=facts,
        frames=nearest_frame(facts.times, timestamps),
        timestamps=timestamps,
        boxes=tuple(np.asarray(keyframe.boxes, np.float32).reshape(-1, 4) for keyframe in video.keyframes),
        labels=tuple(keyframe.labels for keyframe in video.keyframes),
        tracks=tuple(keyframe.tracks for keyframe in video.keyframes),
    )


class WindowDataset(Dataset):
    """Windows of frames around chosen raw frames; an item is a whole batch of them.

    Where a window cannot be read, a request with a seed (training) gets another one, drawn by that seed. So the content
    of a batch depends neither on the workers nor on earlier reads. One without (evaluation) gets a black window that
    does not count. A window that could not be read is not tried again by the same process.

    Args:
        videos: what to cut from.
        samples: (S, 2) int64 rows (video, raw frame of the keyframe).
        window: which frames around it.
        num_classes: K, for frames without annotation.
        store: where frames come from.
        transform: applied to requests that carry a seed.
        broken: remembers videos that cannot be read; None lets them raise ``VideoError``.
    """

    def __init__(
        self,
        videos: Sequence[TimedVideo],
        samples: np.ndarray,
        window: Window,
        num_classes: int,
        store: FrameStore,
        transform: ClipTransform | None = None,
        broken: BrokenVideos | None = None,
    ) -> None:
        self.videos = videos
        self.samples = samples
        self.window = window
        self.num_classes = num_classes
        self.store = store
        self.transform = transform
        self.broken = broken
        self._unreadable: dict[int, str] = {}
        """Samples that cannot be read, and why."""
        if transform is not None:
            load_albumentations()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, batch: list[Request] | int) -> ClipBatch:
        # A bare number is how Lightning's overfit_batches asks, past the sampler.
        requests = [Request(batch, None)] if isinstance(batch, int) else batch
        return collate_clips([self._readable(request) for request in requests], self.window.keyframes)

    def _readable(self, request: Request) -> ClipSample:
        """The sample asked for, or what takes its place."""
        if request.index == STAND_IN:
            return self._stand_in(0)
        if self.broken is None:
            return self._sample(request)
        index = request.index
        rng = None if request.seed is None else np.random.default_rng([request.seed, 1])  # 1: not the augmentation's
        for _ in range(REPLACEMENTS):
            if index not in self._unreadable:
                try:
                    return self._sample(request._replace(index=index))
                except VideoError as error:
                    self._unreadable[index] = str(error)
                    self.broken.add(self.videos[self.samples[index, 0]].path, error)
            if rng is None:
                return self._stand_in(index)
            reason = self._unreadable[index]
            index = int(rng.integers(len(self)))
        raise VideoError(f"{REPLACEMENTS} samples in a row cannot be read; the last: {reason}")

    def _stand_in(self, index: int) -> ClipSample:
        """A black window of the size of a sample, without a name."""
        facts = self.videos[self.samples[index, 0]].facts
        frames = self.store.blank(facts.size, self.window.past + self.window.future)
        nothing = [np.empty((0, 4), np.float32)] * self.window.supervised
        no_labels = [np.empty((0, self.num_classes), np.uint8)] * self.window.supervised
        none, no_time = np.zeros(self.window.supervised, bool), np.zeros(self.window.supervised)
        size = facts.size if isinstance(self.store, FeatureMaps) else None
        return ClipSample(frames, none, none, nothing, no_labels, "", no_time, facts.original_size, size)

    def _sample(self, request: Request) -> ClipSample:
        number, keyframe = self.samples[request.index].tolist()
        video = self.videos[number]
        past, future, stride, supervised = self.window
        indices = window_indices(keyframe, past, future, stride, len(video.facts.times))
        shown = keyframe + stride * np.arange(1 - supervised, 1)
        found = self._annotations(video, shown)
        boxes = [video.boxes_in_pixels(i) if i >= 0 else np.empty((0, 4), np.float32) for i in found]
        labels = [video.labels[i] if i >= 0 else np.empty((0, self.num_classes), np.uint8) for i in found]
        times = video.facts.times[np.maximum(shown, 0)]
        if len(video.timestamps):
            times = np.where(found >= 0, video.timestamps[found], times)
        transform = None if request.seed is None else self.transform
        if isinstance(self.store, FeatureMaps):
            mirrored = transform is not None and transform.mirrors(request.seed)
            frames, size = self.store.get(video.path, indices, mirrored), video.facts.size
            boxes = [mirrored_boxes(each, size[1]) for each in boxes] if mirrored else boxes
        else:
            frames, size = self.store.get(video.path, indices), None
            if transform is not None:
                frames, boxes, labels = transform(frames, boxes, labels, request.seed)
        original, exists = video.facts.original_size, shown >= 0
        return ClipSample(frames, found >= 0, exists, boxes, labels, video.video_id, times, original, size)

    def _annotations(self, video: TimedVideo, shown: np.ndarray) -> np.ndarray:
        """Positions of the keyframes that belong to the supervised frames, -1 where there is none."""
        if len(video.frames) == 0:
            return np.full(len(shown), -1)
        return annotated_at(shown, video.frames, max(self.window.stride, 1))


def annotated_samples(videos: Sequence[TimedVideo], min_boxes: int) -> np.ndarray:
    """Return all annotated frames with at least ``min_boxes`` boxes: (S, 2) rows (video, raw frame).

    Of several moments that fall on one frame the first is what a sample of it shows.
    """
    rows = [
        (number, frame)
        for number, video in enumerate(videos)
        for frame, boxes, is_first in zip(
            video.frames.tolist(), video.boxes, video.is_first_of_frame.tolist(), strict=True
        )
        if len(boxes) >= min_boxes and is_first
    ]
    return np.asarray(rows, np.int64).reshape(-1, 2)


def grid_samples(videos: Sequence[TimedVideo], grid: int) -> np.ndarray:
    """The annotated frames that a stream of stride ``grid`` is scored on: (S, 2) rows (video, raw frame)."""
    rows = [
        (number, int(video.frames[position]))
        for number, video in enumerate(videos)
        for _, position in keyframes_on_grid(video.frames, grid, len(video.facts.times))
    ]
    return np.asarray(rows, np.int64).reshape(-1, 2)


def true_keyframes(videos: Sequence[TimedVideo], grid: int, start_seconds: float) -> list[TrueKeyframe]:
    """The ground truth of ``grid_samples``, in the same order, bit for bit as a batch's boxes in the original video."""
    keyframes = []
    for video in videos:
        scale = _to_original(video)
        for _, position in keyframes_on_grid(video.frames, grid, len(video.facts.times)):
            keyframes.append(
                TrueKeyframe(
                    video.video_id,
                    float(video.timestamps[position]) + start_seconds,
                    video.boxes_in_pixels(position) * scale,
                    video.labels[position],
                    video.facts.original_size,
                )
            )
    return keyframes


def true_tubes(video: TimedVideo, grid: int) -> TrueTubes:
    """The ground truth of a video's tubes, in the frames that a stream of stride ``grid`` takes.

    A tube is one person (track) doing one action. It ends where the person is absent or does something else, and where
    a sampled frame has no annotation. What comes after is another tube. Of several boxes of a person in a frame the
    first counts.
    """
    length, scale = len(video.facts.times), _to_original(video)
    annotated, columns, boxes = {}, [np.empty((0, 3), np.int64)], [np.empty((0, 4), np.float32)]
    for slot, position in keyframes_on_grid(video.frames, grid, length).tolist():
        annotated[float(video.timestamps[position])] = slot
        person, label = np.nonzero(video.labels[position])
        tracks = video.tracks[position]
        if tracks is None:
            raise UserError(
                f"has boxes at {video.timestamps[position]:g} s without person ids or tubes, which video mAP needs",
                video.path,
                "leave model.detection.video_map out",
            )
        columns.append(np.stack([tracks[person], label, np.full(len(person), slot)], axis=1))
        boxes.append(video.boxes_in_pixels(position)[person] * scale)
    rows, first = np.unique(np.concatenate(columns), axis=0, return_index=True)  # in order of person, label, slot
    cuts = np.flatnonzero((np.diff(rows, axis=0) != [0, 0, 1]).any(axis=1)) + 1
    corners = np.concatenate(boxes)[first]
    tubes = tuple(
        TrueTube(int(part[0, 1]), part[:, 2], corner, int(part[0, 0]))
        for part, corner in zip(np.split(rows, cuts), np.split(corners, cuts), strict=True)
        if len(part)
    )
    return TrueTubes(num_slots(length, grid), annotated, tubes)


def _to_original(video: TimedVideo) -> np.ndarray:
    """(4,) factors from pixels of the store's frames to pixels of the original video."""
    return np.tile(np.divide(video.facts.original_size, video.facts.size, dtype=np.float32)[::-1], 2)


def slot_samples(videos: Sequence[TimedVideo], stride: int) -> np.ndarray:
    """Return every frame that a stream takes: (S, 2) rows (video, raw frame)."""
    rows = [
        (number, slot * stride)
        for number, video in enumerate(videos)
        for slot in range(num_slots(len(video.facts.times), stride))
    ]
    return np.asarray(rows, np.int64).reshape(-1, 2)
