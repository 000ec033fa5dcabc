"""Detection on parallel streams, chunk by chunk: the network and its state, delay, decoding, tracks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from datamodules.batches import StreamBatch

from ..linking.online import LinkedFrame
from ..networks.detection.outputs import Detections, ScoredBoxes
from ..networks.layers.pixels import normalise_frames
from ..networks.streaming import select_lanes
from ..networks.students.detector import DetectorState, StreamingDetector
from .lane_states import LaneStates
from .predictions import Answer, StreamAnswers, StreamFrame, on_cpu
from .tracked import TrackedFrame, people_of
from .tracks import LaneTracks

Decode = Callable[[Detections, Tensor, Tensor], list[ScoredBoxes]]
"""Detections (B, ...), sizes of the input (B, 2), sizes of the video (B, 2) -> scored boxes of B frames."""


def with_last_repeated(frames: Tensor, is_valid: Tensor) -> Tensor:
    """Frames (B, T, ...) with the last valid one in place of all after it; ``is_valid`` (B, T), the first ones.

    Lanes without a valid frame repeat the first.
    """
    last = (is_valid.sum(1) - 1).clamp(min=0)  # (B,)
    times = torch.arange(frames.shape[1], device=frames.device).minimum(last[:, None])  # (B, T)
    return frames[torch.arange(len(frames), device=frames.device)[:, None], times]


class StreamPredictor:
    """Detect on every lane of a stream and assign each prediction to the frame that it is about.

    The one implementation: evaluation, ``predict`` and ``StreamSession`` go through it. The state of a lane is renewed
    where a stream starts and held where a lane has run out. At the end of a stream the last frame is repeated for as
    long as predictions come late, as in the clip of a teacher. How streams are cut into chunks changes nothing. Where
    batches name their lanes, lanes without a frame take no part in the step.

    Args:
        network: in the mode that it shall run in.
        decode: makes scored boxes of detections.
    """

    def __init__(self, network: StreamingDetector, decode: Decode) -> None:
        self.network, self.decode = network, decode
        self.reset()

    def reset(self) -> None:
        """Forget all streams."""
        self.answers = StreamAnswers(self.look_ahead)
        self.state: DetectorState | None = None
        self.lane_states = LaneStates()
        self._newest: tuple[Tensor, Tensor, Tensor] | None = None
        self._tracks: dict[int, LaneTracks] = {}

    @property
    def look_ahead(self) -> int:
        return self.network.look_ahead

    def add(self, batch: StreamBatch) -> list[Answer]:
        """Return the predictions that are due with a chunk; where a stream ends with it, all that are left."""
        return self.answers.add(batch, self.detect(batch))

    def finish(self) -> list[Answer]:
        """Return the predictions that are still to come; every stream is over, and all are forgotten."""
        lanes = self.answers.waiting()
        late: dict[int, list[ScoredBoxes]] = {}
        if lanes and self.state is not None and self._newest is not None:
            chosen = torch.tensor(lanes, device=self._newest[0].device)
            late = dict(zip(lanes, self._after_end(self.state, *self._newest, chosen), strict=True))
        predictions = self.answers.finish(late)
        self.state = self._newest = None
        return predictions

    def track(self, predictions: Sequence[Answer], class_names: Sequence[str]) -> list[TrackedFrame]:
        """Recognise people from frame to frame; predictions come as ``add`` and ``finish`` return them."""
        pairs = zip(predictions, self.link(predictions), strict=True)
        return [_tracked(prediction.frame, linked, class_names) for prediction, linked in pairs]

    def link(self, predictions: Sequence[Answer]) -> list[LinkedFrame]:
        """Do the same for tensors, which are on the CPU then."""
        linked = []
        found_of_frames = on_cpu([prediction.found for prediction in predictions])
        for (frame, _), found in zip(predictions, found_of_frames, strict=True):
            tracks = self._tracks.setdefault(frame.lane, LaneTracks(found.scores.shape[1]))
            if frame.is_first:
                tracks.start(frame.video_id)
            linked.append(tracks.update(found))
        return linked

    def detect(self, batch: StreamBatch) -> list[list[ScoredBoxes]]:
        """Scored boxes of each lane's T frames, in pixels of the original video. Where a stream ends with them, those
        of the repeated frames after its end are included."""
        frames = normalise_frames(batch.frames, batch.image_sizes)
        ends = self.look_ahead > 0 and bool(batch.is_last.any())
        if ends:
            frames = with_last_repeated(frames, batch.is_valid)
        fresh = self.network.initial_state(len(frames), self.network.pixel_size(frames), device=frames.device)
        state = self._state_before(batch, fresh)
        detections, after = self.network(frames, state, batch.image_sizes)
        if batch.lanes is None:
            self.state = select_lanes(batch.is_valid[:, -1], after, state)
        else:
            self.lane_states.keep(batch.lanes, after)
        said = self._decode_lanes(detections, batch.image_sizes, batch.original_sizes)
        if self.look_ahead:
            self._newest = (frames[:, -1:], batch.image_sizes, batch.original_sizes)
        if ends:
            lanes = batch.is_last.nonzero().flatten()
            for lane, scored in zip(lanes.tolist(), self._after_end(after, *self._newest, lanes), strict=True):
                said[lane] += scored
        return said

    def _state_before(self, batch: StreamBatch, fresh: DetectorState) -> DetectorState:
        """Return the state of the batch's rows; ``fresh`` is that of streams that begin."""
        if batch.lanes is not None:
            return self.lane_states.joined(batch.lanes, batch.is_first.tolist(), fresh)
        # Where no lane continues, other videos begin, perhaps of another size or on another number of lanes.
        if self.state is None or not bool(((batch.is_valid[:, 0] | batch.is_last) & ~batch.is_first).any()):
            return fresh
        return select_lanes(batch.is_first, fresh, self.state)

    def _after_end(
        self, state: DetectorState, newest: Tensor, image_sizes: Tensor, original_sizes: Tensor, lanes: Tensor
    ) -> list[list[ScoredBoxes]]:
        """Repeat the newest frame (B, 1, ...) on E of the lanes; ``look_ahead`` scored boxes for each of them."""
        frames = newest[lanes].expand(-1, self.look_ahead, -1, -1, -1)
        detections, _ = self.network(frames, tree_map(lambda part: part[lanes], state), image_sizes[lanes])
        return self._decode_lanes(detections, image_sizes[lanes], original_sizes[lanes])

    def _decode_lanes(
        self, detections: Detections, image_sizes: Tensor, original_sizes: Tensor
    ) -> list[list[ScoredBoxes]]:
        """Detections with axes (B, T, ...) -> T scored boxes for each of the B lanes."""
        lanes, length = detections.boxes.shape[:2]
        scored = self.decode(
            Detections(*(part.flatten(0, 1) for part in detections)),
            image_sizes.repeat_interleave(length, dim=0),
            original_sizes.repeat_interleave(length, dim=0),
        )
        return [scored[lane * length : (lane + 1) * length] for lane in range(lanes)]


def _tracked(frame: StreamFrame, linked: LinkedFrame, class_names: Sequence[str]) -> TrackedFrame:
    track_ids, *seen = linked
    people = people_of(ScoredBoxes(*seen), class_names, track_ids)
    size = tuple(frame.original_size.tolist())
    return TrackedFrame(frame.video_id, frame.timestamp, frame.index, size, people, frame.picture)
