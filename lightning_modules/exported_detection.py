"""Predict with a student's exported file, and evaluate it as its network is."""

from __future__ import annotations

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from datamodules.batches import ClipBatch
from datamodules.errors import UserError

from .evaluation.benchmark import Benchmark
from .networks.detection.export_graphs import FRAMES, NEXT
from .runtimes.opening import ExportedStudent
from .stream_detection import StreamDetectionModule, StreamSettings


class ExportedDetectionModule(StreamDetectionModule):
    """``StreamDetectionModule`` of a network that cannot learn: predictions and evaluation are the same.

    Args:
        network: the exported file.
        detection: how detections are decoded and scored.
    """

    def __init__(
        self,
        network: ExportedStudent,
        detection: StreamSettings = StreamSettings(),  # noqa: B008  (frozen)
    ) -> None:
        super().__init__(network, detection=detection)

    def setup(self, stage: str) -> None:
        if stage not in ("predict", "validate"):
            raise UserError(
                f"an exported file can predict and validate, not {getattr(stage, 'value', stage)}",
                remedy="take the config of its network",
            )
        if getattr(self.trainer.datamodule, "lanes", 1) != 1:
            # Lanes on which nothing runs show frames of another size than the file takes.
            raise UserError(
                f"is {self.trainer.datamodule.lanes}, but an exported file is evaluated one stream at a time",
                where="data.lanes",
                remedy="set it to 1",
            )
        super().setup(stage)
        rank_zero_info(self.network.choice)

    def benchmark(self) -> Benchmark:
        """Measure one call of the file, from pixels to decoded predictions; its operations cannot be counted."""
        network: ExportedStudent = self.network
        lanes, first = network.batch_size or 1, network.initial_state(network.batch_size or 1)
        frames = np.random.default_rng(0).integers(0, 256, (lanes, *network.image_size, 3), dtype=np.uint8)
        state = {name: value.numpy() for name, value in first.items()}

        def step() -> None:
            nonlocal state
            outputs = network.run({FRAMES: frames, **state})
            state = {name: outputs[NEXT + name] for name in state}

        return Benchmark(network, (frames,), "frame", step, delay=network.look_ahead, state=first)

    def training_step(self, batch: ClipBatch, batch_idx: int) -> Tensor:
        raise NotImplementedError("an exported file has no parameters")
