"""A training that goes on from a checkpoint ends as one that never stopped: bit for bit, whatever moment it is of."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging

from callbacks.run_checkpoint import RunCheckpoint
from lightning_modules.base import ExperimentModule
from lightning_modules.clip_detection import ClipDetectionModule
from lightning_modules.motion_distillation import MotionDistillationModule
from lightning_modules.networks.temporal.backbones.recurrent_features import RecurrentFeatures
from lightning_modules.networks.temporal.decomposed_detector import DecomposedDetector
from lightning_modules.networks.temporal.frame_scores import FrameScores
from lightning_modules.networks.temporal.heads.anchor_free_head import AnchorFreeHead
from lightning_modules.networks.temporal.heads.segment_pyramid import PyramidSize
from lightning_modules.networks.temporal.temporal_detector import TemporalDetector
from lightning_modules.networks.weights.loading import save_weights
from lightning_modules.online_detection import OnlineDetectionModule
from lightning_modules.runs.resuming import seed_batch
from lightning_modules.stream_detection import StreamDetectionModule
from lightning_modules.stream_distillation import DistillationModule
from lightning_modules.temporal_detection import TemporalDetectionModule
from tests.lightning_modules import temporal, tiny
from tests.networks.temporal.temporal_parts import MeanColour

DROP = 0.3
"""Of the paths of networks that have that, so that training draws random numbers."""


class Checkpoints(L.Callback):
    """Writes checkpoints at all the moments at which a run may have been killed since."""

    def __init__(self, folder: Path, batches: tuple[int, ...]) -> None:
        self.folder, self.batches = folder, batches
        self.seen = 0

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        self.seen += 1
        if self.seen in self.batches:
            trainer.save_checkpoint(self.folder / f"batch_{self.seen}.ckpt")

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        trainer.save_checkpoint(self.folder / f"validation_{self.seen}.ckpt")

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        trainer.save_checkpoint(self.folder / f"epoch_{self.seen}.ckpt")


class StopAfter(L.Callback):
    """Ends a training as a kill does: right after a batch, without an epoch's end."""

    def __init__(self, batches: int) -> None:
        self.left = batches

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        self.left -= 1
        if not self.left:
            raise Killed


class StopSoon(L.Callback):
    """Asks for the end of a training after a batch, as Lightning's timer does."""

    def __init__(self, batches: int) -> None:
        self.left = batches

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        self.left -= 1
        trainer.should_stop |= not self.left


class Killed(Exception):
    """Exception that stands for a kill."""


def optimizer(groups: list[dict]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=3e-3)


def segment_head(channels: int, num_classes: int) -> AnchorFreeHead:
    size = PyramidSize(dim=8, num_levels=2, num_heads=2, attention_window=3, drop_path_rate=DROP)
    return AnchorFreeHead(channels, num_classes, size)


def temporal_detector() -> TemporalDetector:
    torch.manual_seed(0)
    return TemporalDetector(3, MeanColour(temporal.CHANNELS), segment_head, 8)


def clip(folder: Path) -> ExperimentModule:
    network = tiny.teacher(drop_path_rate=DROP, decoder_drop_path_rate=DROP)
    return ClipDetectionModule(network, one_slot_until=0.3, optimizer=optimizer)


def stream(folder: Path) -> ExperimentModule:
    return StreamDetectionModule(tiny.student(), optimizer=optimizer)


def distillation(folder: Path) -> ExperimentModule:
    save_weights(tiny.teacher(seed=3).state_dict(), folder / "teacher.pt")
    return DistillationModule(tiny.student(), lambda _: tiny.teacher(), str(folder / "teacher.pt"), optimizer=optimizer)


def temporal_detection(folder: Path) -> ExperimentModule:
    return TemporalDetectionModule(temporal_detector(), modality="features", optimizer=optimizer)


def motion_distillation(folder: Path) -> ExperimentModule:
    save_weights(temporal_detector().state_dict(), folder / "motion.pt")
    torch.manual_seed(1)
    return MotionDistillationModule(
        DecomposedDetector(3, MeanColour(temporal.CHANNELS), segment_head, 8),
        teacher=lambda _: temporal_detector(),
        teacher_weights=str(folder / "motion.pt"),
        teacher_modality="features",
        modality="features",
        optimizer=optimizer,
    )


def online(folder: Path) -> ExperimentModule:
    torch.manual_seed(0)
    network = FrameScores(RecurrentFeatures(temporal.CHANNELS, 16), 3)
    return OnlineDetectionModule(network, modality="features", optimizer=optimizer)


AUGMENTED = {"scale_range": (0.8, 1.2), "brightness": 0.2, "contrast": 0.2}
CLIPS = {"batch_size": 2, "samples_per_epoch": 12, **AUGMENTED}
SEGMENTS = {"batch_size": 2, "train_windows": "random", "windows_per_epoch": 12}
RECIPES = {
    "clip": (clip, CLIPS),
    "stream": (stream, CLIPS),
    "distillation": (distillation, CLIPS),
    "temporal_detection": (temporal_detection, SEGMENTS),
    "motion_distillation": (motion_distillation, SEGMENTS),
    "online": (online, SEGMENTS),
}
"""Each with six batches an epoch."""


def data(recipe: str, folder: Path, workers: int) -> L.LightningDataModule:
    settings = RECIPES[recipe][1] | {"num_workers": workers}
    if RECIPES[recipe][1] is SEGMENTS:
        return temporal.features(folder, **settings)
    make = tiny.clips if recipe == "clip" else tiny.streams
    return make(tiny.videos(folder), folder / "cache", **settings)


def fit(
    recipe: str, folder: Path, workers: int = 0, checkpoint: Path | None = None, **trainer: Any
) -> tuple[ExperimentModule, L.Trainer]:
    module = RECIPES[recipe][0](folder)
    torch.manual_seed(hash(checkpoint) % 2**32)  # what was drawn before a training must not matter
    settings = {"max_epochs": 3, "limit_val_batches": 1} | trainer
    runner = tiny.trainer(folder, **settings)
    with suppress(Killed):
        runner.fit(module, datamodule=data(recipe, folder, workers), ckpt_path=checkpoint, weights_only=True)
    return module, runner


def assert_alike(found: object, wanted: object, where: str = "") -> None:
    """Compare nested states, tensors bit by bit."""
    if isinstance(wanted, torch.Tensor):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True, msg=lambda text: f"{where}: {text}")
    elif isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), where
        for key, value in wanted.items():
            assert_alike(found[key], value, f"{where}.{key}")
    elif isinstance(wanted, list | tuple):
        assert len(found) == len(wanted), where
        for index, value in enumerate(wanted):
            assert_alike(found[index], value, f"{where}[{index}]")
    else:
        assert found == wanted, where


def assert_ends_alike(found: tuple[ExperimentModule, L.Trainer], wanted: tuple[ExperimentModule, L.Trainer]) -> None:
    """Compare weights, optimiser and schedule of two trainings."""
    (module, trainer), (expected, expected_trainer) = found, wanted
    assert trainer.global_step == expected_trainer.global_step
    assert_alike(module.state_dict(), expected.state_dict())
    assert_alike(trainer.optimizers[0].state_dict(), expected_trainer.optimizers[0].state_dict(), "optimiser")
    schedule, expected_schedule = (each.lr_scheduler_configs[0].scheduler for each in (trainer, expected_trainer))
    assert_alike(schedule.state_dict(), expected_schedule.state_dict(), "schedule")


def resumes_alike(recipe: str, folder: Path, workers: int, batches: tuple[int, ...], **trainer: Any) -> list[str]:
    """Train once without a stop, go on from all its checkpoints, and compare; their names."""
    moments = Checkpoints(folder / "moments", batches)
    whole = fit(recipe, folder, workers, callbacks=[moments], **trainer)
    assert_ends_alike(fit(recipe, folder, workers, **trainer), whole)
    checkpoints = sorted(moments.folder.iterdir())
    for checkpoint in checkpoints:
        assert_ends_alike(fit(recipe, folder, workers, checkpoint, **trainer), whole)
    return [checkpoint.stem for checkpoint in checkpoints]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_goes_on_from_the_midst_and_from_the_end_of_an_epoch(recipe, tmp_path):
    names = resumes_alike(recipe, tmp_path, 1, (4, 6), max_epochs=2)
    assert {"batch_4", "batch_6", "validation_6", "epoch_6"} < set(names)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_the_number_of_worker_processes_does_not_matter(workers, tmp_path):
    resumes_alike("clip", tmp_path, workers, (4, 6), max_epochs=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer", "moment"),
    [
        ({"accumulate_grad_batches": 4}, "batch_5"),
        ({"max_steps": 10}, "epoch_6"),
        ({"val_check_interval": 2}, "validation_2"),
        ({"val_check_interval": 4, "check_val_every_n_epoch": None}, "validation_8"),
        ({"limit_train_batches": 5}, "epoch_5"),
        ({"limit_val_batches": 0}, "epoch_6"),
        ({"check_val_every_n_epoch": 2}, "validation_12"),
    ],
    ids=str,
)
def test_whatever_the_trainer_is_asked_for_training_goes_on_alike(trainer, moment, tmp_path):
    assert moment in resumes_alike("temporal_detection", tmp_path, 0, (1, 5, 6, 7, 11), **trainer)


@pytest.mark.slow
def test_a_training_can_be_resumed_again_and_again(tmp_path):
    whole = fit("temporal_detection", tmp_path, 1)
    checkpoint, before = None, 0
    for batch in (4, 9, 12, 14):
        moments = Checkpoints(tmp_path / "moments", (batch - before,))
        stop = StopAfter(batch - before)
        fit("temporal_detection", tmp_path, 1, checkpoint, callbacks=[moments, stop])
        checkpoint, before = moments.folder / f"batch_{batch - before}.ckpt", batch
    assert_ends_alike(fit("temporal_detection", tmp_path, 1, checkpoint), whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "trainer", [{}, {"limit_val_batches": 0}, {"accumulate_grad_batches": 3}, {"check_val_every_n_epoch": 3}], ids=str
)
def test_a_training_that_was_stopped_within_an_epoch_goes_on_with_the_rest_of_it(trainer, tmp_path):
    """``max_time`` stops a training so: an epoch's end is called for, although batches are left."""
    whole = fit("temporal_detection", tmp_path, 0, **trainer)
    callbacks = [RunCheckpoint(every_minutes=None), StopSoon(9)]  # after half of the second epoch
    fit("temporal_detection", tmp_path, 0, callbacks=callbacks, enable_checkpointing=True, **trainer)
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    assert_ends_alike(fit("temporal_detection", tmp_path, 0, checkpoint, **trainer), whole)


@pytest.mark.slow
def test_averaged_weights_go_on_alike(tmp_path):
    def averaged(checkpoint: Path | None, *callbacks: L.Callback) -> tuple[ExperimentModule, L.Trainer]:
        average = EMAWeightAveraging(decay=0.5)
        return fit("temporal_detection", tmp_path, 0, checkpoint, callbacks=[average, *callbacks], max_epochs=2)

    moments = Checkpoints(tmp_path / "moments", (4, 6))
    whole = averaged(None, moments)
    for moment in ("batch_4", "batch_6", "validation_6", "epoch_6"):
        assert_ends_alike(averaged(moments.folder / f"{moment}.ckpt"), whole)


def test_what_the_training_of_a_batch_draws_depends_on_its_place_alone(monkeypatch):
    def drawn(*place: int) -> float:
        torch.rand(5)
        seed_batch(*place)
        return float(torch.rand(()))

    places = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    numbers = [drawn(*place) for place in places]
    assert numbers == [drawn(*place) for place in places] and len(set(numbers)) == len(places)
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    assert drawn(0, 0, 0) not in numbers


def test_a_checkpoint_from_the_midst_of_a_step_of_more_processes_goes_on_without_what_they_gathered(tmp_path):
    moments = Checkpoints(tmp_path, (1,))
    fit("online", tmp_path, callbacks=[moments, StopAfter(1)], accumulate_grad_batches=2)
    checkpoint = torch.load(tmp_path / "batch_1.ckpt", weights_only=True)
    assert checkpoint["accumulated_gradients"]
    checkpoint["accumulated_gradients"] = {
        name: each.repeat(2, *[1] * (each.dim() - 1)) for name, each in checkpoint["accumulated_gradients"].items()
    }
    torch.save(checkpoint, tmp_path / "two.ckpt")
    with pytest.warns(UserWarning, match="by 2 processes, now there are 1"):
        fit("online", tmp_path, checkpoint=tmp_path / "two.ckpt", accumulate_grad_batches=2)
