"""Training steps per second of the teacher and of distillation on a GPU, and what bf16 and TF32 do to the gradients."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from callbacks.measures.latency import synchronizer
from datamodules.batches import ClipBatch
from lightning_modules.clip_detection import ClipDetectionModule
from lightning_modules.command_line.precision import computes_bfloat16
from lightning_modules.networks.weights.loading import save_weights
from lightning_modules.stream_distillation import DistillationModule
from results.benchmarks.gpu.forms import set_tf32
from results.benchmarks.gpu.processes import Settings
from results.benchmarks.gpu.steps import SIDE, failure, free
from results.benchmarks.page import Row, memory_mib
from results.benchmarks.student_networks import NUM_CLASSES, configured

WARMUP, STEPS, SECONDS = 3, 30, 4.0
"""Steps before the clock starts, and after it: so many, or as many as fit into the seconds."""


class Precision(NamedTuple):
    """Arithmetic of training."""

    name: str
    of_trainer: str
    tf32: bool = False


PRECISIONS = (Precision("float32", "32-true"), Precision("TF32", "32-true", True), Precision("bf16", "bf16-mixed"))


class Recipe(NamedTuple):
    """Networks and windows of a size, as the recipes of ``configs/`` have them."""

    teacher: str
    student: str
    windows: tuple[int, int, int]
    """Frames up to the last supervised one, frames after it, and how many are supervised, in distillation."""
    side: int
    batch_sizes: tuple[int, ...]


RECIPES = {
    "vit_b": Recipe("evad_vit_b", "dsta_vit_b", (12, 7, 1), SIDE, (2, 8)),
    "tiny": Recipe("evad_16f_tiny", "dsta_tiny", (14, 7, 6), 128, (2,)),
}
STILL = {"backbone.drop_path_rate": 0.0, "head.decoder.drop_path_rate": 0.0}
"""Changes of the teacher, so that every precision drops the same: nothing."""


def batch_of(size: int, length: int, keyframes: tuple[int, ...], side: int, num_classes: int) -> ClipBatch:
    """Random windows with two people at every supervised frame."""
    generator = torch.Generator().manual_seed(0)
    count = size * len(keyframes)
    boxes = torch.tensor([[0.1, 0.2, 0.4, 0.9], [0.5, 0.1, 0.8, 0.95]]) * side
    labels = torch.zeros(2, num_classes)
    labels[:, 3] = 1
    sizes = torch.tensor([[side, side]] * size)
    return ClipBatch(
        torch.randint(0, 256, (size, length, 3, side, side), dtype=torch.uint8, generator=generator),
        sizes,
        keyframes,
        *(torch.ones(size, len(keyframes), dtype=torch.bool),) * 2,
        (boxes,) * count,
        (labels,) * count,
        tuple(map(str, range(size))),
        torch.zeros(size, len(keyframes), dtype=torch.float64),
        sizes,
    )


class Repeated(L.LightningDataModule):
    """DataModule that repeats one batch in the CPU's memory."""

    def __init__(self, batch: ClipBatch, steps: int, num_classes: int, pinned: bool) -> None:
        super().__init__()
        self.batch, self.steps, self.num_classes, self.pinned = batch, steps, num_classes, pinned

    def train_dataloader(self) -> DataLoader:
        return DataLoader([self.batch] * self.steps, batch_size=None, pin_memory=self.pinned)


class Pace(L.Callback):
    """Seconds of training steps after the first ones, and the gradients of the first."""

    def __init__(self, device: torch.device) -> None:
        self.wait = synchronizer(device)
        self.gradients = torch.zeros(0)
        self.counted, self.seconds = 0, 0.0
        self._began: float | None = None

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not len(self.gradients):
            parts = [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]
            self.gradients = torch.cat([part.detach().flatten().float().cpu() for part in parts])

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx + 1 == WARMUP:
            self.wait()
            self._began = time.perf_counter()
        elif self._began is not None:
            self.counted += 1
            if self.counted == STEPS or time.perf_counter() - self._began > SECONDS:
                self.wait()
                self.seconds = time.perf_counter() - self._began
                trainer.should_stop = True


def optimizer(groups: Any) -> torch.optim.Optimizer:
    """AdamW that does all of its work and changes nothing, so that every row starts from the same weights."""
    return torch.optim.AdamW(groups, lr=0.0)


def modules(size: str, folder: Path) -> Iterator[tuple[str, L.LightningModule, int, tuple[int, ...]]]:
    """Yield name and module of teacher and distillation, frames of a window, and which of them are supervised."""
    recipe = RECIPES[size]
    torch.manual_seed(0)
    teacher: Any = configured(recipe.teacher, STILL)
    num_frames = teacher.num_frames
    yield (
        f"teacher ({recipe.teacher})",
        ClipDetectionModule(teacher, optimizer=optimizer),
        num_frames,
        (num_frames // 2,),
    )
    save_weights(teacher.state_dict(), folder / "teacher.pt")
    past, future, supervised = recipe.windows
    student: Any = configured(recipe.student, {})
    distilled = DistillationModule(student, lambda _: teacher, str(folder / "teacher.pt"), optimizer=optimizer)
    name = f"distillation ({recipe.student} from {recipe.teacher})"
    yield name, distilled, past + future, tuple(range(past - supervised, past))


def fit(module: L.LightningModule, data: Repeated, precision: Precision, device: torch.device, folder: Path) -> Pace:
    """Train for some steps on one device."""
    pace = Pace(device)
    trainer = L.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=[device.index or 0] if device.type == "cuda" else 1,
        precision=precision.of_trainer,  # type: ignore[arg-type]
        max_epochs=1,
        callbacks=[pace],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, datamodule=data)
    return pace


def measure_training(settings: Settings) -> Iterator[Row]:
    """Teacher and distillation, each in every precision and with every batch size; loading stays outside the clock."""
    device = torch.device(settings.device)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    recipe, num_classes = RECIPES[settings.size], NUM_CLASSES[settings.size]
    with TemporaryDirectory() as name:
        folder = Path(name)
        for network, module, length, keyframes in modules(settings.size, folder):
            for batch_size in recipe.batch_sizes:
                batch = batch_of(batch_size, length, keyframes, recipe.side, num_classes)
                data = Repeated(batch, WARMUP + STEPS, num_classes, pinned=device.type == "cuda")
                expected: Tensor | None = None
                for precision in PRECISIONS:
                    is_bf16 = precision.of_trainer == "bf16-mixed"
                    if (precision.tf32 and device.type != "cuda") or (is_bf16 and not computes_bfloat16(device)):
                        continue
                    row = {"part": "training", "network": network, "form": precision.name, "batch": batch_size}
                    row["side"] = recipe.side
                    free(device)
                    set_tf32(precision.tf32)
                    try:
                        pace = fit(module, data, precision, device, folder)
                    except RuntimeError as error:
                        yield row | {"failed": failure(error)}
                        continue
                    if expected is None:
                        expected = pace.gradients
                    row["steps_per_second"] = pace.counted / pace.seconds
                    row["clips_per_second"] = batch_size * pace.counted / pace.seconds
                    row["error_gradients"] = float((pace.gradients - expected).norm() / expected.norm())
                    row["memory_mib"] = memory_mib(device, peak=True)
                    row["rounds"] = pace.counted
                    yield row
