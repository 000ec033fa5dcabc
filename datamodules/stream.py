"""Streams: how a streaming student is trained on windows and evaluated on whole videos, chunk by chunk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from datamodules.annotations.few_labels import WithUnlabelled
from datamodules.annotations.source import DetectionSource, Split
from datamodules.batches import StreamBatch
from datamodules.detection import DetectionDataModule
from datamodules.errors import UserError
from datamodules.frames.maps import FeatureMaps
from datamodules.frames.store import FrameStore
from datamodules.sampling.collate import padded_size, stack_clips
from datamodules.sampling.indexing import NOTHING, StreamChunk, keyframes_on_grid, num_slots, stream_chunks
from datamodules.sampling.samplers import InOrder, MixedBatches
from datamodules.sampling.transforms import ClipTransform
from datamodules.sampling.windows import TimedVideo, Window, WindowDataset, annotated_samples, slot_samples
from datamodules.settings import FrameSettings, KeyframeLoaderSettings, UnlabelledSettings, require_at_least
from datamodules.video.broken import BrokenVideos
from datamodules.video.listing import VideoError


class ChunkDataset(Dataset):
    """The steps of parallel streams; item i is the batch of step i, so the order matters.

    Where a chunk cannot be read its video ends before it.

    Args:
        videos: what is streamed.
        steps: for each step what is on each lane.
        sizes: for each step the height and width of its batch, which its videos are padded to.
        chunk_frames: T.
        frame_stride: raw frames from one slot to the next.
        num_classes: K.
        store: where frames come from.
        broken: remembers videos that cannot be read; None lets them raise ``VideoError``.
        grid: raw frames from one that may be scored to the next; ``frame_stride`` by default.
    """

    def __init__(
        self,
        videos: Sequence[TimedVideo],
        steps: Sequence[tuple[StreamChunk, ...]],
        sizes: Sequence[tuple[int, int]],
        chunk_frames: int,
        frame_stride: int,
        num_classes: int,
        store: FrameStore,
        broken: BrokenVideos | None = None,
        grid: int | None = None,
    ) -> None:
        grid = grid or frame_stride
        self.videos = videos
        self.steps = steps
        self.sizes = sizes
        self.chunk_frames = chunk_frames
        self.frame_stride = frame_stride
        self.num_classes = num_classes
        self.store = store
        self.broken = broken
        self._ends: dict[tuple[int, int], int] = {}
        """For each stream (video, phase) that cannot be read to its end, the first slot of the chunk that cannot."""
        on_grid = [keyframes_on_grid(video.frames, grid, len(video.facts.times)) for video in videos]
        self.keyframes = [{grid * place: keyframe for place, keyframe in rows.tolist()} for rows in on_grid]
        """For each video, raw frame -> position of the keyframe that is scored there."""

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, step: int) -> StreamBatch:
        size = self.sizes[step]
        chunks, pixels = zip(*(self._read(chunk, size) for chunk in self.steps[step]), strict=True)
        lanes, length = len(chunks), self.chunk_frames
        are_maps = isinstance(self.store, FeatureMaps)
        shown = [self.videos[chunk.video].facts.size if chunk.valid else size for chunk in chunks]
        frames, image_sizes = stack_clips(pixels, shown if are_maps else [None] * lanes, size)
        originals = [self.videos[chunk.video].facts.original_size if chunk.valid else size for chunk in chunks]
        annotated = torch.zeros(lanes, length, dtype=torch.bool)
        timestamps = torch.zeros(lanes, length, dtype=torch.float64)
        frame_indices = torch.zeros(lanes, length, dtype=torch.int64)
        boxes = [torch.empty(0, 4)] * (lanes * length)
        labels = [torch.empty(0, self.num_classes)] * (lanes * length)
        for lane, chunk in enumerate(chunks):
            if not chunk.valid:
                continue
            video = self.videos[chunk.video]
            raw_frames = self._raw_frames(chunk)
            frame_indices[lane, : chunk.valid] = torch.from_numpy(raw_frames)
            timestamps[lane, : chunk.valid] = torch.from_numpy(video.facts.times[raw_frames])
            for at, raw_frame in enumerate(raw_frames.tolist()):
                keyframe = self.keyframes[chunk.video].get(raw_frame)
                if keyframe is not None:
                    annotated[lane, at] = True
                    timestamps[lane, at] = video.timestamps[keyframe]
                    boxes[lane * length + at] = torch.from_numpy(video.boxes_in_pixels(keyframe))
                    labels[lane * length + at] = torch.from_numpy(video.labels[keyframe].astype(np.float32))
        valid = torch.tensor([chunk.valid for chunk in chunks])
        return StreamBatch(
            frames=frames,
            image_sizes=image_sizes,
            is_first=torch.tensor([chunk.valid > 0 and chunk.start == 0 for chunk in chunks]),
            is_valid=torch.arange(length) < valid[:, None],
            is_last=torch.tensor([self._is_last(chunk) for chunk in chunks]),
            annotated=annotated,
            boxes=tuple(boxes),
            labels=tuple(labels),
            video_ids=tuple(self.videos[chunk.video].video_id if chunk.valid else "" for chunk in chunks),
            timestamps=timestamps,
            original_sizes=torch.tensor(originals),
            frame_indices=frame_indices,
        )

    def _is_last(self, chunk: StreamChunk) -> bool:
        if not chunk.valid:
            return False
        length = len(self.videos[chunk.video].facts.times)
        return chunk.start + chunk.valid == num_slots(length - chunk.phase, self.frame_stride)

    def _raw_frames(self, chunk: StreamChunk) -> np.ndarray:
        return chunk.phase + self.frame_stride * np.arange(chunk.start, chunk.start + chunk.valid)

    def _read(self, chunk: StreamChunk, empty_size: tuple[int, int]) -> tuple[StreamChunk, np.ndarray]:
        """A chunk and its frames (T, h, w, 3) uint8, or maps of them; nothing if it cannot be read.

        They are black after the end of the video. An empty lane shows black frames of ``empty_size``, so that nothing
        divides by zero.
        """
        stream = chunk.video, chunk.phase
        if chunk.valid and chunk.start < self._ends.get(stream, chunk.start + 1):
            video = self.videos[chunk.video]
            try:
                frames = self.store.get(video.path, self._raw_frames(chunk))
            except VideoError as error:
                if self.broken is None:
                    raise
                self.broken.add(video.path, error)
                self._ends[stream] = chunk.start
            else:
                if chunk.valid < self.chunk_frames:
                    frames = np.pad(frames, [(0, self.chunk_frames - chunk.valid), (0, 0), (0, 0), (0, 0)])
                return chunk, frames
        return NOTHING, self.store.blank(empty_size, self.chunk_frames)


class StreamDataModule(DetectionDataModule):
    """Windows up to a keyframe for training (ClipBatch), whole videos in chunks for evaluation (StreamBatch).

    A training window ends ``train_future_frames`` after an annotated raw frame f and samples back from it: f, f - s,
    f - 2s, ... for stride s, whatever the phase. Evaluation streams frames 0, s, 2s, ...; an annotated raw frame is
    scored on the last sampled frame at or before it, one annotation a sampled frame. Annotated frames carry the time
    stamp of their annotation, all others the time at which the frame is shown. Videos that are padded to one size are
    streamed together, after them those of the next size: detectors see the padding, and what a network remembers of a
    lane must fit the next video on it.

    Args:
        source: the data set.
        frame_stride: s, raw frames from one slot to the next.
        train_past_frames: frames of a training window up to and including its last keyframe.
        train_future_frames: frames after it, which only a teacher may see.
        loss_frames: L, how many of the last past frames are keyframes; those without annotation say so.
        lanes: B, parallel streams in evaluation; fewer where there are fewer videos of one size.
        chunk_frames: T, frames a stream and step in evaluation.
        unlabelled: windows of videos without labels, from which a teacher alone can teach; None draws none.
        frames: size and cache of the frames.
        augmentation: random changes of training windows.
        loader: what is drawn, and by whom. Evaluation uses one of its workers, to keep the order and read ahead.
        predict_videos: files to predict on; None predicts on the videos of the test split.
    """

    def __init__(
        self,
        source: DetectionSource,
        frame_stride: int = 4,
        train_past_frames: int = 16,
        train_future_frames: int = 0,
        loss_frames: int = 1,
        lanes: int = 8,
        chunk_frames: int = 8,
        unlabelled: UnlabelledSettings | None = None,
        frames: FrameSettings = FrameSettings(),
        augmentation: ClipTransform = ClipTransform(),
        loader: KeyframeLoaderSettings = KeyframeLoaderSettings(),
        predict_videos: list[str | Path] | None = None,
    ) -> None:
        if unlabelled is not None and unlabelled.folder is not None:
            source = WithUnlabelled(source, unlabelled.folder)
        super().__init__(source, frames, loader, predict_videos, augmentation)
        require_at_least(0, train_future_frames=train_future_frames)
        require_at_least(1, frame_stride=frame_stride, train_past_frames=train_past_frames)
        require_at_least(1, lanes=lanes, chunk_frames=chunk_frames)
        if not 1 <= loss_frames <= train_past_frames:
            raise UserError(
                f"loss_frames must lie within 1..train_past_frames ({train_past_frames}), got {loss_frames}"
            )
        if loader.eval_batch_size is not None:
            raise UserError(
                "streams are evaluated in lanes, not in batches", "data.loader.eval_batch_size", "set data.lanes"
            )
        self.window = Window(train_past_frames, train_future_frames, frame_stride, loss_frames)
        self.frame_stride = frame_stride
        self.lanes = lanes
        self.chunk_frames = chunk_frames
        self.unlabelled = unlabelled

    @property
    def evaluation_grid(self) -> int:
        return 1 if self.loader.every_frame else self.frame_stride

    def train_dataloader(self) -> DataLoader:
        videos = self.videos("train")
        samples = annotated_samples(videos, self.loader.min_keyframe_boxes)
        if len(samples) == 0:
            raise UserError(f"the train split of {type(self.source).__name__} has no annotated keyframe to use")
        others = self._unlabelled_samples(videos)
        dataset = WindowDataset(
            videos,
            np.concatenate([samples, others]),
            self.window,
            self.num_classes,
            self.store,
            self.augmentation,
            self._broken,
        )
        if self.unlabelled is None:
            sampler = self._shuffled(len(samples))
        else:
            sampler = MixedBatches(len(samples), len(others), self.unlabelled.share, *self._drawn())
        return self._loader(dataset, sampler, self.loader.num_workers)

    def _unlabelled_samples(self, videos: Sequence[TimedVideo]) -> np.ndarray:
        """Every frame that a stream takes of videos without labels, where they are wanted: (S, 2) rows."""
        if self.unlabelled is None:
            return np.empty((0, 2), np.int64)
        bare = np.asarray([number for number, video in enumerate(videos) if not len(video.frames)], np.int64)
        if not len(bare):
            raise UserError(
                f"wants {self.unlabelled.share:g} of the windows from videos without labels, but every training video "
                "has some",
                where="data.unlabelled",
                remedy="name a folder of them (data.unlabelled.folder), or leave it out",
            )
        samples = slot_samples([videos[number] for number in bare.tolist()], self.frame_stride)
        samples[:, 0] = bare[samples[:, 0]]
        return samples

    def val_dataloader(self) -> DataLoader:
        return self._streams("val")

    def test_dataloader(self) -> DataLoader:
        return self._streams("test")

    def predict_dataloader(self) -> DataLoader:
        return self._streams("predict")

    def _streams(self, split: Split | Literal["predict"]) -> DataLoader:
        videos = self.videos(split)
        if not videos:
            raise UserError(f"the {split} split of {type(self.source).__name__} has no videos")
        phases = self.frame_stride if self.loader.every_frame and split != "predict" else 1
        steps, sizes = self._steps(videos, phases)
        dataset = ChunkDataset(
            videos,
            steps,
            sizes,
            self.chunk_frames,
            self.frame_stride,
            self.num_classes,
            self.frames_of(split),
            self._broken,
            self.frame_stride // phases,
        )
        return self._loader(dataset, InOrder(len(dataset)), min(self.loader.num_workers, 1))

    def _steps(
        self, videos: Sequence[TimedVideo], phases: int
    ) -> tuple[list[tuple[StreamChunk, ...]], list[tuple[int, int]]]:
        """Return the content of each lane, and the size of the batch, for each step of this rank."""
        of_size: dict[tuple[int, int], list[int]] = {}
        for number, video in enumerate(videos):
            of_size.setdefault(padded_size(*video.facts.size), []).append(number)
        steps, sizes = [], []
        for size, numbers in of_size.items():
            lengths = [len(videos[number].facts.times) for number in numbers]
            slots = [
                [num_slots(length - phase, self.frame_stride) for phase in range(min(phases, length))]
                for length in lengths
            ]
            lanes = min(self.lanes, math.ceil(len(numbers) / self.world_size))
            for step in stream_chunks(slots, lanes, self.chunk_frames, self.rank, self.world_size):
                steps.append(tuple(c._replace(video=numbers[c.video]) if c.valid else NOTHING for c in step))
                sizes.append(size)
        return steps, sizes
