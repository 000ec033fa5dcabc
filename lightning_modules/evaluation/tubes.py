"""Video mAP of a detector: links the frames of each video as they come, and scores its tubes when it is over."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from datamodules.batches import TrueTubes

from ..linking.act import ActTubes
from ..linking.online import OnlineLinker, OnlineTubes
from ..metrics.tubes import Tube
from ..metrics.video_ap import VideoProtocol
from ..metrics.video_map import VideoMeanAveragePrecision
from ..networks.detection.outputs import ScoredBoxes
from .predictions import on_cpu

Linker = Literal["online", "act"]
ACT_MISSED_FRAMES, ACT_SHORTEST_TUBE = 5, 15
"""Raw frames, as ACT counts them."""


@dataclass(frozen=True)
class VideoMapSettings:
    """Settings that a video mAP is named by.

    Args:
        linker: ``online`` (``OnlineTubes``; the arguments below are its own and those of ``OnlineLinker``), or ``act``,
            the offline linking of ACT with its own thresholds, its numbers of frames divided by the stride.
        protocol: see ``metrics.video_ap``.
        iou_threshold, min_score, max_gap, smoothing, nms_threshold: see ``OnlineLinker``.
        score_threshold, min_frames, interpolate_gaps, end_share, begin_share, lead: see ``OnlineTubes``.

    The defaults of smoothing and score_threshold did best for the DSTA student on training videos of Puppets. ACT's
    linking never cuts a person's track where an action ends, so it suits videos of one action a person.
    """

    linker: Linker = "online"
    protocol: VideoProtocol = "act"
    iou_threshold: float = 0.3
    min_score: float = 0.3
    max_gap: int = 5
    smoothing: float = 0.2
    nms_threshold: float = 0.6
    score_threshold: float = 0.15
    min_frames: int = 2
    interpolate_gaps: bool = True
    end_share: float = 0.0
    begin_share: float | None = None
    lead: int = 0

    def __post_init__(self) -> None:
        for name, choices in (("linker", Linker), ("protocol", VideoProtocol)):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(f"{name} must be one of {get_args(choices)}, got {getattr(self, name)!r}")
        self.tubes(num_classes=1, stride=1)  # the linkers check their own arguments

    def __str__(self) -> str:
        """Such as ``act video mAP, online linker``."""
        told = ""
        if self.end_share or self.begin_share:
            ends = "ends" if self.begin_share in (None, self.end_share) else f"ends ({self.begin_share:g} at the begin)"
            told += f", {ends} cut at {self.end_share:g} of a tube's best score"
        if self.lead:
            told += f", begun {self.lead} frames earlier"
        return f"{self.protocol} video mAP, {self.linker} linker{told}"

    def tubes(self, num_classes: int, stride: int) -> OnlineTubes | ActTubes:
        """A linker for one video."""
        if self.linker == "act":
            missed, shortest = (math.ceil(frames / stride) for frames in (ACT_MISSED_FRAMES, ACT_SHORTEST_TUBE))
            return ActTubes(num_classes, max_missed=missed, min_frames=shortest)
        linker = OnlineLinker(
            num_classes, self.iou_threshold, self.min_score, self.max_gap, self.smoothing, self.nms_threshold
        )
        return OnlineTubes(
            linker,
            self.score_threshold,
            self.min_frames,
            self.interpolate_gaps,
            self.end_share,
            self.begin_share,
            self.lead,
        )


@dataclass
class _OpenVideo:
    tubes: OnlineTubes | ActTubes
    linked: int = 0
    """How many frames have been linked."""
    waiting: dict[int, ScoredBoxes] = field(default_factory=dict)
    """Those that came before their turn, by number."""


class VideoEvaluation:
    """Link the detections of every sampled frame of several videos, those of each in order of time.

    What comes before its turn waits for it. What is kept of a video are its linked detections, and those until its last
    frame: then its tubes go to the metric. A video that loses a frame or does not come to its end is not scored;
    ``cut`` names it.

    Args:
        settings: linker and protocol.
        metric: gets the tubes.
        truth: what is scored, by video id.
        stride: raw frames from one sampled frame to the next.
    """

    def __init__(
        self,
        settings: VideoMapSettings,
        metric: VideoMeanAveragePrecision,
        truth: Mapping[str, TrueTubes],
        stride: int,
    ) -> None:
        self.settings, self.metric, self.truth, self.stride = settings, metric, truth, stride
        self._open: dict[str, _OpenVideo] = {}
        self.on_finished: Callable[[str, list[Tube]], None] | None = None
        """Gets the tubes of every video that is scored, with its name."""

    def add(self, frames: Sequence[tuple[str, int]], scored: Sequence[ScoredBoxes]) -> None:
        """Detections of some frames, each named by its video and its number among the sampled frames."""
        for (video, slot), found in zip(frames, on_cpu(scored), strict=True):
            self._add(video, slot, found)

    def _add(self, video: str, slot: int, found: ScoredBoxes) -> None:
        if video not in self._open or slot == 0:
            self._open[video] = _OpenVideo(self.settings.tubes(self.metric.num_classes, self.stride))
        opened = self._open[video]
        opened.waiting[slot] = found
        while (due := opened.waiting.pop(opened.linked, None)) is not None:
            opened.tubes.add(*due)
            opened.linked += 1
        if opened.linked == self.truth[video].num_slots:
            del self._open[video]
            truth = [tube._asdict() for tube in self.truth[video].tubes]
            tubes = opened.tubes.tubes()
            self.metric.update([{"tubes": tubes}], [{"tubes": truth}])
            if self.on_finished is not None:
                self.on_finished(video, tubes)

    @property
    def cut(self) -> list[str]:
        """Videos of this process that have not been seen from their first frame to their last."""
        return sorted(self._open)

    def finish(self) -> dict[str, Any]:
        """The result over all processes; everything starts over."""
        self._open.clear()
        result = self.metric.compute()
        self.metric.reset()
        return result
