"""Videos whose frames carry their own number, and a data set made of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from datamodules.annotations.source import AnnotatedVideo, DetectionSource, Keyframe, Split
from tests.datamodules.written_videos import write_video

BITS = 10
FPS = 8


def numbered_frames(count: int, height: int = 96, width: int = 128) -> Iterator[np.ndarray]:
    """Frames (height, width, 3) with their number as bright and dark bars."""
    edges = np.linspace(0, width, BITS + 1).round().astype(int)
    for number in range(count):
        frame = np.full((height, width, 3), 40, np.uint8)
        for bit in range(BITS):
            if number >> bit & 1:
                frame[height // 6 : -height // 6, edges[bit] + 1 : edges[bit + 1] - 1] = 220
        yield frame


def read_numbers(frames: np.ndarray) -> list[int]:
    """(T, H, W, 3) -> the number that each frame carries."""
    bar = frames.shape[2] / BITS
    height = frames.shape[1]
    centre = frames[:, height // 3 : -height // 3].mean(axis=(1, 3))  # (T, W)
    bright = [centre[:, round((bit + 0.3) * bar) : round((bit + 0.7) * bar)].mean(axis=1) > 130 for bit in range(BITS)]
    return sum(bits.astype(np.int64) << bit for bit, bits in enumerate(bright)).tolist()


def write_pictures(folder: Path, count: int, pattern: str, first: int = 1, size: tuple[int, int] = (96, 128)) -> Path:
    """Write numbered frames as pictures; the first, which carries 0, is called ``pattern.format(first)``."""
    import cv2

    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(numbered_frames(count, *size)):
        assert cv2.imwrite(str(folder / pattern.format(first + number)), frame)
    return folder


def encode(
    path: Path, count: int, codec: str = "libx264", container: str | None = None, rate: int = 30, **options: str
) -> Path:
    """Write numbered frames with any codec that PyAV has."""
    import av

    with av.open(str(path), "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        stream.options = options
        for frame in numbered_frames(count):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode())
    return path


def damage(path: Path, frame: int) -> Path:
    """Overwrite a frame (in the order of decoding) of an mp4: the file opens, and decoding stops there."""
    import av

    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][frame]
    content = bytearray(path.read_bytes())
    content[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    path.write_bytes(content)
    return path


def assert_same_batch(ours: NamedTuple, theirs: NamedTuple) -> None:
    """Two batches agree bit for bit in every field."""
    assert type(ours) is type(theirs)
    for name, mine, other in zip(ours._fields, ours, theirs, strict=True):
        if isinstance(mine, Tensor) or (isinstance(mine, tuple) and mine and isinstance(mine[0], Tensor)):
            torch.testing.assert_close(other, mine, rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")
        else:
            assert mine == other, name


class NumberedVideos(DetectionSource):
    """Two classes; each video has two boxes on each annotated frame, at ``frame / FPS`` seconds.

    Args:
        folder: where the videos are written.
        lengths: frames of each video; the first ``training`` of them are for training.
        every: each how-manieth raw frame is annotated.
        sizes: height and width of each video.
    """

    def __init__(
        self,
        folder: Path,
        lengths: Sequence[int] = (40, 24, 33),
        training: int = 2,
        every: int = 3,
        sizes: Sequence[tuple[int, int]] = ((96, 128),),
    ) -> None:
        self.folder, self.lengths, self.training, self.every, self.sizes = folder, lengths, training, every, sizes

    def prepare(self) -> None:
        for number, length in enumerate(self.lengths):
            path = self.folder / f"video_{number}.mp4"
            if not path.exists():
                write_video(path, numbered_frames(length, *self.sizes[number % len(self.sizes)]), Fraction(FPS))

    def class_names(self) -> tuple[str, ...]:
        return ("walk", "wave")

    def videos(self, split: Split) -> tuple[AnnotatedVideo, ...]:
        numbers = range(self.training) if split == "train" else range(self.training, len(self.lengths))
        return tuple(
            AnnotatedVideo(
                f"video_{number}",
                self.folder / f"video_{number}.mp4",
                tuple(self._keyframe(frame) for frame in range(1, self.lengths[number], self.every)),
            )
            for number in numbers
        )

    def _keyframe(self, frame: int) -> Keyframe:
        boxes = np.asarray([[0.125, 0.25, 0.375, 0.75], [0.5, 0.25, 0.875, 1.0]], np.float32)
        return Keyframe(frame / FPS, boxes, np.asarray([[1, 0], [1, 1]], np.uint8))
