"""Detect people and what they do in a video, a camera or your own frames, in plain Python.

    session = StreamSession.from_pretrained("results/weights/dsta.pt")
    for prediction in session.predict("street.mp4"):
        print(prediction.seconds, prediction.people)

Frames, sampling, delay and tracks are those of ``python main.py predict``, through the same code; neither Lightning nor
a config is involved.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils._pytree import tree_map

from datamodules.batches import StreamBatch
from datamodules.errors import UserError
from datamodules.frame_stream import FrameStream, stream_batch
from datamodules.frames.store import FrameScale
from datamodules.sampling.time_grid import TimeGrid

from .evaluation.stream_predictor import StreamPredictor
from .evaluation.tracked import TrackedFrame
from .networks.detection.outputs import ScoreRule, decode_detections
from .networks.layers.prepared import prepare_for_inference
from .networks.students.detector import StreamingDetector
from .networks.weights import pretrained
from .networks.weights.card import Card
from .networks.weights.configured import card_with_timing
from .runtimes.detector import ExportedDetector
from .runtimes.exported_file import SUFFIX
from .runtimes.opening import ExportedStudent, RuntimeChoice, require_fits

Source = str | Path | int | Iterable[np.ndarray]
"""A video, a folder of videos or numbered pictures, a camera's number, an address, or frames (H, W, 3) uint8 RGB."""
FRAMES = "frames"
"""The video id of frames that come as arrays."""


class StreamSession:
    """A streaming detector and what it remembers of one stream.

    Args:
        network: it is moved to ``device`` and prepared for inference, so it must not be trained meanwhile.
        card: description of its frames and classes.
        device: where it runs.
        person_threshold, score: see ``decode_detections``.
    """

    def __init__(
        self,
        network: StreamingDetector | ExportedDetector,
        card: Card,
        device: str | torch.device = "cpu",
        person_threshold: float = 0.0,
        score: ScoreRule = "person_x_action",
    ) -> None:
        self.network, self.card, self.device = network.eval().to(device), card, torch.device(device)
        prepare_for_inference(self.network)
        self._decode = partial(decode_detections, person_threshold=person_threshold, score=score)
        self.reset()

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        device: str | torch.device = "cpu",
        runtime: RuntimeChoice | None = None,
        look_ahead: int | None = None,
    ) -> StreamSession:
        """Load a streaming detector that says by itself how it is built and what its frames must be like.

        Args:
            name: one of four: a weights file with a card (``.pt``, ``.safetensors``), a folder that ``save_pretrained``
                wrote, a repository of the Hugging Face hub (``owner/name``), a student's exported file (``.onnx``).
            device: where it runs; an exported file runs on the CPU.
            runtime: what runs it: ``torch`` for weights; ``onnx`` or ``openvino`` for an exported file, by default the
                faster of those installed.
            look_ahead: delay of predictions in sampled frames, of a network that was trained for several; its own by
                default.

        Raises:
            UserError: the name does not exist, the file is damaged or no streaming detector, or the runtime cannot run
                it, or not with this delay.
        """
        require_fits(runtime, Path(name))
        if Path(name).suffix == SUFFIX:
            if torch.device(device).type != "cpu":
                raise UserError(f"an exported file runs on the CPU, not on {device}", where=name)
            student = ExportedStudent(str(name), None if runtime == "torch" else runtime)
            if look_ahead not in (None, student.look_ahead):
                raise UserError(f"an exported file keeps its delay of {student.look_ahead} frames", where=name)
            return cls(student, student.card)
        network, card = pretrained.load_streaming(name)
        if look_ahead is not None:
            try:
                network.set_timing(replace(network.timing, look_ahead=look_ahead))
            except ValueError as error:
                raise UserError(str(error), where=name) from error
        return cls(network, card_with_timing(card, network), device=device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write weights and card as safetensors, and a page about them, into a folder.

        Raises:
            UserError: an exported file has no weights to write.
        """
        self._require_weights()
        pretrained.save_pretrained(self.network, self.card, folder)

    def push_to_hub(self, name: str, private: bool = True) -> str:
        """Upload what ``save_pretrained`` writes to a repository of the hub, ``owner/name``; return its address."""
        self._require_weights()
        return pretrained.push_to_hub(self.network, self.card, name, private)

    def _require_weights(self) -> None:
        if isinstance(self.network, ExportedDetector):
            raise UserError("an exported file has no weights of a network", remedy="take the weights it was made of")

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.card.classes

    @property
    def look_ahead(self) -> int:
        """Delay of predictions in sampled frames."""
        return self.network.look_ahead

    def predict(
        self,
        source: Source,
        frame_rate: float | None = None,
        max_frames: int | None = None,
        max_seconds: float | None = None,
        chunk_frames: int = 8,
        pictures: bool = False,
    ) -> Iterator[TrackedFrame]:
        """Yield the sampled frames of a source in order, each with the people in it.

        Frames are sampled by time at the pace that the network was trained on. A prediction has a delay of
        ``look_ahead`` frames and is placed at the frame that it is about. At the end of a video the last frame is
        repeated, so every sampled frame has one. A camera goes on until the loop is left. What ``step`` remembers is
        left alone.

        Args:
            source: see ``Source``.
            frame_rate: of frames that come as arrays, per second, by default that of the training videos; of a folder
                of pictures, by default 30. Videos and cameras have their own time stamps.
            max_frames: sampled frames after which to stop: of each file, or of a live source.
            max_seconds: longest part of each file, or longest run on a live source.
            chunk_frames: frames of a file that the network sees at once; changes nothing but speed.
            pictures: whether predictions hold the frames as they were read, which fills the memory if all are kept.

        Raises:
            UserError: there is no such source, it cannot be read, or frames are no pictures.
        """
        predictor = StreamPredictor(self.network, self._decode)
        for batch in self._batches(source, frame_rate, max_frames, max_seconds, chunk_frames):
            yield from self._predictions(predictor, batch, pictures)
        yield from self._rest(predictor)

    def step(self, frame: np.ndarray, seconds: float | None = None) -> TrackedFrame | None:
        """Take the next frame of one stream and return the prediction that is due with it.

        That is None for frames between the sampled ones, and for the first ones while predictions come late. The
        prediction is about the frame that its time stamp and number name.

        Args:
            frame: (H, W, 3) uint8 RGB; OpenCV's are BGR.
            seconds: its time stamp; by default frames come at the rate of the training videos.

        Raises:
            UserError: this is no picture, its size has changed, its time stamp is before that of the frame before, or
                has no meaning since the card does not say the frame rate.
        """
        batch = self._steps.batch(frame, seconds)
        due = [] if batch is None else self._predictions(self._predictor, batch, pictures=True)
        return due[0] if due else None

    def finish(self) -> list[TrackedFrame]:
        """Return the predictions of the last ``look_ahead`` frames given to ``step``, whose stream is over."""
        rest = self._rest(self._predictor)
        self.reset()
        return rest

    def reset(self) -> None:
        """Forget the stream of ``step``; the next frame is the first of another one."""
        self._predictor = StreamPredictor(self.network, self._decode)
        self._steps = _Steps(self.card, None)

    def _batches(
        self,
        source: Source,
        frame_rate: float | None,
        max_frames: int | None,
        max_seconds: float | None,
        chunk_frames: int,
    ) -> Iterator[StreamBatch]:
        for name, value in {"frame_rate": frame_rate, "max_frames": max_frames, "max_seconds": max_seconds}.items():
            if value is not None and value <= 0:
                raise UserError(f"{name} must be above 0, got {value}")
        if chunk_frames < 1:
            raise UserError(f"chunk_frames must be at least 1, got {chunk_frames}")
        if isinstance(source, str | Path | int):
            stream = FrameStream(
                str(source),
                period_seconds(self.card),
                FrameScale(self.card.short_side),
                len(self.card.classes),
                chunk_frames,
                frame_rate or 30.0,
                max_frames,
                max_seconds,
            )
            stream.find()
            yield from stream.batches()
            return
        steps, taken = _Steps(self.card, frame_rate), 0
        for frame in source:
            if taken == max_frames or steps.next_seconds >= (max_seconds or math.inf):
                return
            batch = steps.batch(frame, None)
            if batch is not None:
                taken += 1
                yield batch

    @torch.inference_mode()
    def _predictions(self, predictor: StreamPredictor, batch: StreamBatch, pictures: bool) -> list[TrackedFrame]:
        batch = batch if pictures else batch._replace(pictures=())
        moved = tree_map(lambda part: part.to(self.device) if isinstance(part, torch.Tensor) else part, batch)
        return predictor.track(predictor.add(moved), self.card.classes)

    @torch.inference_mode()
    def _rest(self, predictor: StreamPredictor) -> list[TrackedFrame]:
        return predictor.track(predictor.finish(), self.card.classes)


class _Steps:
    """The frames of one stream, given one by one: which are sampled, and when they are shown.

    Args:
        card: stride, frame rate and size of the frames.
        frame_rate: of the frames, where they have no time stamps; that of the card by default.
    """

    def __init__(self, card: Card, frame_rate: float | None) -> None:
        # Without any rate the stride alone counts: seconds are then numbers of frames.
        counts_frames = card.frame_rate is None and frame_rate is None
        self._card, self._grid = card, TimeGrid(card.frame_stride if counts_frames else period_seconds(card))
        self._scale, self._num_classes = FrameScale(card.short_side), len(card.classes)
        self._frame_rate = frame_rate or card.frame_rate or 1.0
        self._index, self._seconds = 0, -math.inf
        self._size: tuple[int, ...] | None = None

    @property
    def next_seconds(self) -> float:
        """Return the time of the next frame if it has no time stamp."""
        return self._index / self._frame_rate

    def batch(self, frame: np.ndarray, seconds: float | None) -> StreamBatch | None:
        """Return the next frame as a batch, None if it is not sampled."""
        frame = np.asarray(frame)
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
            raise UserError(f"a frame is an array (H, W, 3) of uint8 in RGB, got {frame.dtype} {frame.shape}")
        if self._size not in (None, frame.shape):
            raise UserError(
                f"frame {self._index} has {frame.shape[1]}x{frame.shape[0]} pixels, those before it "
                f"{self._size[1]}x{self._size[0]}",
                remedy="call finish(), then give frames of another size",
            )
        if seconds is not None:
            period_seconds(self._card)  # which refuses a time stamp where no rate is known
        seconds = self.next_seconds if seconds is None else float(seconds)
        if not seconds >= self._seconds:
            raise UserError(
                f"frame {self._index} is shown at {seconds:g} s, the one before it at {self._seconds:g} s",
                remedy="call reset() where another stream begins",
            )
        is_first = self._size is None
        self._size, self._seconds, index = frame.shape, seconds, self._index
        self._index += 1
        if not self._grid.takes(seconds):
            return None
        pictures = np.array(frame)[None]  # a copy: the caller may read the next frame into the same memory
        scaled = self._scale(pictures, FRAMES)
        return stream_batch(FRAMES, pictures, scaled, [seconds], [index], is_first, False, self._num_classes)


def period_seconds(card: Card) -> float:
    """Return the time from one sampled frame to the next.

    Raises:
        UserError: the card does not say the frame rate.
    """
    if card.frame_rate is None:
        raise UserError(
            "the weights do not say the frame rate of their training videos",
            where="card.frame_rate",
            remedy="give it: StreamSession(network, dataclasses.replace(card, frame_rate=...))",
        )
    return card.frame_stride / card.frame_rate
