"""Streaming mAP beside mAP, from the latency that a detector has here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
import torch.distributed
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from callbacks.measures.cost import OWN, as_measured, durations
from datamodules.batches import TrueKeyframe
from lightning_modules.metrics.streaming_map import Schedule, StreamingMeanAveragePrecision

EXPECTED = {"scored", "video_ids", "timestamps"}
"""Keys that a step must return for it; modules that detect no boxes do not."""
Moments = dict[tuple[str, float], dict[str, Tensor]]


class Machine(NamedTuple):
    """Speed of predictions on this machine."""

    latency_seconds: float
    schedule: Schedule
    frames_awaited: int


class StreamingAccuracy(Callback):
    """Log ``test/streaming_map``: at each frame's time the newest prediction that is finished by then is scored.

    A clip detector takes the newest frame whenever it is idle, a stream takes every frame. The frames that they await,
    the end of the clip or the network's look-ahead, delay their predictions too. See
    ``lightning_modules.metrics.streaming_map``. There must be a prediction for every sampled frame, so that data whose
    annotation is sparser, such as AVA's, are not scored.

    Args:
        latency_ms: latency of a prediction; None measures the step that the benchmark measures.
        warmup, repeats: untimed and timed steps of that.
    """

    def __init__(self, latency_ms: float | None = None, warmup: int = 3, repeats: int = 15) -> None:
        if latency_ms is not None and latency_ms < 0:
            raise ValueError(f"latency_ms must be at least 0 or None, got {latency_ms}")
        if repeats < 1 or warmup < 0:
            raise ValueError(f"repeats must be at least 1 and warmup at least 0, got {repeats} and {warmup}")
        self.latency_ms, self.warmup, self.repeats = latency_ms, warmup, repeats
        self._found: Moments | None = None

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._found = {} if hasattr(trainer.datamodule, "sampled_frames") else None

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._found is None or not isinstance(outputs, Mapping) or not set(outputs) >= EXPECTED:
            return
        start = trainer.datamodule.source.start_seconds
        moments = (outputs[name] for name in ("scored", "video_ids", "timestamps"))
        for found, video, seconds in zip(*moments, strict=True):
            rows = {"boxes": found.boxes.detach().cpu(), "scores": found.scores.detach().cpu()}
            self._found[video, _rounded(seconds + start)] = rows

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found, self._found = _of_all_processes(trainer, self._found), None
        if not found:
            return
        data = trainer.datamodule
        videos: dict[str, list[TrueKeyframe]] = {}
        for keyframe in data.true_keyframes("test"):
            videos.setdefault(keyframe.video_id, []).append(keyframe)
        sampled = data.sampled_frames("test")
        if any(len(keyframes) < sampled[video] for video, keyframes in videos.items()):
            rank_zero_info("no streaming mAP: not every sampled frame is annotated, so not every one has a prediction")
            return
        whole = {video: keyframes for video, keyframes in videos.items() if _predictions(found, keyframes)}
        if not whole:
            rank_zero_info("no streaming mAP: limit_test_batches ended before any video did")
            return
        machine = self._machine(trainer, pl_module)
        metric = StreamingMeanAveragePrecision(
            data.num_classes,
            machine.latency_seconds,
            machine.schedule,
            machine.frames_awaited,
            class_ids=data.evaluated_classes,
            sync_on_compute=False,  # every process has all videos
            **asdict(pl_module.detection.metric),
        )
        for keyframes in whole.values():
            keyframes = sorted(keyframes, key=lambda keyframe: keyframe.timestamp)
            predictions = _predictions(found, keyframes)
            truth = [_true_rows(keyframe) for keyframe in keyframes]
            metric.update_video([keyframe.timestamp for keyframe in keyframes], predictions, truth)
        result = metric.compute()
        rank_zero_info(
            f"test/streaming_map {100 * float(result['map']):.2f} %: {metric.streaming_description}, "
            f"{int(result['num_frames'])} frames"
        )
        pl_module.log("test/streaming_map", float(result["map"]), rank_zero_only=True)
        pl_module.log("test/streaming_latency_ms", 1e3 * machine.latency_seconds, rank_zero_only=True)

    def _machine(self, trainer: Trainer, module: LightningModule) -> Machine:
        """Measured by the first process, for all."""
        latency = None if self.latency_ms is None else self.latency_ms / 1e3
        with as_measured(trainer, module) as benchmark:
            is_stream = benchmark.state is not None
            if latency is None and trainer.is_global_zero:
                timed = durations(benchmark, module.device, self.warmup, self.repeats)
                latency = timed.latencies[OWN].p50_ms / 1e3
        latency = trainer.strategy.broadcast(latency)
        return Machine(latency, "every" if is_stream else "newest", benchmark.delay or 0)


def _predictions(found: Moments, keyframes: Sequence[TrueKeyframe]) -> list[dict[str, Tensor]]:
    """Return what was predicted on the frames of a video, nothing where limit_test_batches ended before it did."""
    moments = [(keyframe.video_id, _rounded(keyframe.timestamp)) for keyframe in keyframes]
    return [found[moment] for moment in moments] if found.keys() >= set(moments) else []


def _true_rows(keyframe: TrueKeyframe) -> dict[str, Tensor]:
    """The boxes of a ``TrueKeyframe``, one row an action."""
    row, label = torch.from_numpy(keyframe.labels).nonzero(as_tuple=True)
    return {"boxes": torch.from_numpy(keyframe.boxes)[row], "labels": label}


def _rounded(seconds: float) -> float:
    """Time stamps as keys: those of batches and of the ground truth are sums in another order."""
    return round(seconds, 4)


def _of_all_processes(trainer: Trainer, found: Moments | None) -> Moments | None:
    if found is None or trainer.world_size == 1:
        return found
    parts: list[Moments] = [{}] * trainer.world_size
    torch.distributed.all_gather_object(parts, found)
    return {moment: rows for part in parts for moment, rows in part.items()}
