"""The recipes for AVA, UCF101-24 and JHMDB, but for their sizes as they are, on real annotation: teacher, students.

UCF101-24's clips are real too. Of AVA and JHMDB only the annotation is here; the pictures are those of a dive.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from datamodules.annotations.pickles.safe_pickle import load_pickle
from main import OnlookerCLI, main

ROOT = Path(__file__).resolve().parents[1]
REAL = ROOT.parent / "shared" / "data"
DATA_SETS = ("ava", "ucf101_24", "jhmdb")
RECIPES = {path.stem for data in DATA_SETS for path in (ROOT / "configs").glob(f"*_{data}.yaml")}
STUDENTS = ("tsa", "dsta")
VIT_L = [
    f"--model.network={ROOT / 'configs' / 'networks' / 'evad_vit_l.yaml'}",
    *("--model.loss.action_weight=6", "--model.optimizer.lr=1e-5"),
    *("--model.training.schedule.warmup_from=0.25", "--data.loader.batch_size=1", "--name=evad_vit_l_ava"),
]
"""Arguments that make the recipe for AVA that of ViT-L."""
PROTOCOLS = {
    "ava": "ava frame mAP@0.5, 60 of 80 classes, stride 4",
    "ucf101_24": "pascal frame mAP@0.5, stride 4",
    "jhmdb": "pascal frame mAP@0.5, stride 2",
}
HEAD = {"localizer.dim": 32, "localizer.num_heads": 4, "localizer.dynamic_dim": 8, "localizer.hidden_dim": 32}
HEAD |= {"decoder.dim": 32, "decoder.num_heads": 4, "decoder.hidden_dim": 32}
SIZE = {"dim": 48, "num_heads": 4, "pretrain_size": 64}
"""Widths for the recipes' networks; their depths, frames, keep rates, proposals and stages stay."""
SAVE_LAST = '{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"save_last": true}}'

pytestmark = [
    pytest.mark.skipif(not REAL.is_dir(), reason=f"needs real annotation in {REAL}"),
    pytest.mark.filterwarnings("ignore:LightningCLI's args parameter"),  # where pytest has arguments itself
    pytest.mark.filterwarnings("ignore:.*(videos are not in|without a frame)"),  # a few seconds of a few videos
]


def test_all_recipes_are_here():
    assert {f"{network}_{data}" for network in ("evad_vit_b", "distill_dsta_vit_b") for data in DATA_SETS} == RECIPES


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    """92 frames of one video, 320 x 240, in order."""
    folder = tmp_path_factory.mktemp("pictures")
    with zipfile.ZipFile(REAL / "ucf101_24" / "rgb-images_CliffDiving.zip") as archive:
        archive.extractall(folder)
    return sorted(folder.rglob("*.jpg"))


@pytest.fixture(scope="module")
def sources(pictures, tmp_path_factory) -> dict[str, dict[str, object]]:
    """Arguments of each data set's source for the samples."""
    folder = tmp_path_factory.mktemp("samples")
    # Two films, named as PySlowFast and as mmaction2 name pictures, which reach to second 903.
    for video, name in (("1j20qq1JyX4", "1j20qq1JyX4_{:06d}.jpg"), ("9F2voT6QWvQ", "img_{:05d}.jpg")):
        link(pictures, folder / "ava" / video, name)
    truth = load_pickle(REAL / "jhmdb" / "JHMDB-GT.pkl")
    for split in ("train_videos", "test_videos"):
        video = min(truth[split][0])
        link(pictures[: truth["nframes"][video]], folder / "jhmdb" / video, "{:05d}.jpg")
    ava, ucf = REAL / "ava" / "annotations", REAL / "ucf101_24"
    boxes = ava / "ava_val_v2.1_head27163.csv"
    return {
        "ava": {
            "videos": folder / "ava",
            "label_map": ava / "ava_action_list_v2.1_for_activitynet_2018.pbtxt",
            "train": boxes,
            "val": boxes,
            "excluded": ava / "ava_val_excluded_timestamps_v2.1.csv",
        },
        "ucf101_24": {
            "videos": ucf / "videos",
            "annotations": ucf / "pyannot.mini.pkl",
            "val": ucf / "testlist.txt",
        },
        "jhmdb": {"videos": folder / "jhmdb", "annotations": REAL / "jhmdb" / "JHMDB-GT.pkl"},
    }


def link(pictures: list[Path], folder: Path, name: str) -> None:
    folder.mkdir(parents=True)
    for number, picture in enumerate(pictures, start=1):
        os.link(picture, folder / name.format(number))


def fit(recipe: str, source: dict[str, object], *more: str, network: Sequence[str] = ()) -> OnlookerCLI:
    """Two steps and an evaluation of a recipe, narrow and on small frames, in the working directory.

    ``network`` are arguments that exchange the recipe's network before it is made narrow.
    """
    networks = ("network", "teacher") if recipe.startswith("distill") else ("network",)
    widths = [f"--model.{of}.head.{name}={value}" for of in networks for name, value in HEAD.items()]
    for of in networks:
        trunk = "trunk" if recipe.startswith("distill") and of == "network" else "backbone"
        widths += [f"--model.{of}.{trunk}.size.{name}={value}" for name, value in SIZE.items()]
    small = ["--data.init_args.frames.short_side=64", "--data.init_args.loader.num_workers=0", "--trainer.max_epochs=1"]
    small += ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=4", "--trainer.accelerator=cpu"]
    quiet = ["--trainer.enable_progress_bar=false", f"--trainer.callbacks=[{SAVE_LAST}]"]
    told = [f"--data.init_args.source.init_args.{name}={value}" for name, value in source.items()]
    precision = torch.get_float32_matmul_precision()
    try:
        return main(
            ["fit", f"--config={ROOT / 'configs' / recipe}.yaml", *network, *widths, *small, *quiet, *told, *more]
        )
    finally:
        torch.set_float32_matmul_precision(precision)


@pytest.fixture(scope="module")
def trained(sources, tmp_path_factory):
    """Data set -> its teacher after two steps, trained where its students look for it."""
    folder, teachers = tmp_path_factory.mktemp("runs"), {}

    def of(data: str) -> tuple[Path, OnlookerCLI]:
        if data not in teachers:
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                teachers[data] = fit(f"evad_vit_b_{data}", sources[data])
        return folder, teachers[data]

    return of


def assert_trained_and_evaluated(cli: OnlookerCLI, data: str, late: str = "") -> None:
    found = cli.trainer.callback_metrics
    assert cli.trainer.global_step == 2
    assert torch.isfinite(found["train/loss"])
    assert 0 <= float(found["val/map"]) <= 1
    assert cli.model.protocol == PROTOCOLS[data] + late
    # What a step does not reach stops a run on several GPUs; the optimiser has met everything else.
    (optimizer,) = cli.trainer.optimizers
    trained = [(name, value) for name, value in cli.model.named_parameters() if value.requires_grad]
    idle = [name for name, value in trained if value not in optimizer.state]
    assert idle == []


@pytest.mark.slow
@pytest.mark.parametrize("data", DATA_SETS)
def test_a_teachers_recipe_trains_and_is_evaluated(data, trained):
    _, cli = trained(data)
    assert_trained_and_evaluated(cli, data)
    assert cli.datamodule.num_classes == {"ava": 80, "ucf101_24": 24, "jhmdb": 21}[data]


@pytest.mark.slow
@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize("data", DATA_SETS)
def test_a_students_recipe_finds_its_teacher_trains_and_is_evaluated(student, data, trained, sources, monkeypatch):
    folder, of_teacher = trained(data)
    monkeypatch.chdir(folder)
    widths = ["--model.network.trunk.attention.lstm_dim=12"] if student == "dsta" else []
    network = [f"--model.network={ROOT / 'configs' / 'networks' / f'{student}_vit_b.yaml'}"]
    cli = fit(f"distill_dsta_vit_b_{data}", sources[data], *widths, network=network)
    assert_trained_and_evaluated(cli, data, late=", answers 7 frames late")
    teacher = cli.model.teacher.network.state_dict()
    assert teacher.keys() == of_teacher.model.network.state_dict().keys()
    for name, value in of_teacher.model.network.state_dict().items():
        torch.testing.assert_close(teacher[name].cpu(), value.cpu(), rtol=0, atol=0)


@pytest.mark.slow
def test_the_recipe_of_vit_l_trains_and_is_evaluated(sources, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_trained_and_evaluated(fit("evad_vit_b_ava", sources["ava"], network=VIT_L), "ava")
