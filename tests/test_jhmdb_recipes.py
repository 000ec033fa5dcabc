"""The recipes for JHMDB on two cores: maps, teacher and students on six real videos, narrow and for two steps each."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from datamodules.annotations.pickles.safe_pickle import load_pickle
from main import OnlookerCLI, main
from results.experiments.lists import read_list
from results.experiments.runs import runs_of

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
JHMDB = ROOT.parent / "shared" / "data" / "jhmdb"
HEAD = {"localizer.dim": 32, "localizer.num_heads": 4, "localizer.dynamic_dim": 8, "localizer.hidden_dim": 32}
HEAD |= {"decoder.dim": 32, "decoder.num_heads": 4, "decoder.hidden_dim": 32}
SIZE = {"dim": 48, "num_heads": 4, "pretrain_size": 64}
SAVE_LAST = '{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"save_last": true}}'
LATE = ["look_ahead=3", "boxes_from=next", "keyframe_code=answered"]
STUDENTS = {
    "student": [],
    "student_truth": [],
    "student at once, TSA": [f"--model.network={CONFIGS}/networks/tsa_stem.yaml"],
    "student late": [*(f"--model.network.timing.{change}" for change in LATE), "--model.network.memory.frames=6"],
    "student few labels": [f"--data.source={CONFIGS}/data/jhmdb_few_labels.yaml", "--data.unlabelled.share=0.5"],
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not JHMDB.is_dir(), reason=f"needs the videos of {JHMDB}"),
    pytest.mark.filterwarnings("ignore:LightningCLI's args parameter"),  # where pytest has arguments itself
    pytest.mark.filterwarnings("ignore:.*(are not in|without a frame|without boxes)"),  # six of 928 videos
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three training and three test videos of the first split, and a stem with random weights."""
    folder = tmp_path_factory.mktemp("jhmdb")
    truth = load_pickle(JHMDB / "JHMDB-GT.pkl")
    for split in ("train_videos", "test_videos"):
        for video in sorted(truth[split][0])[:90:30]:
            (folder / "videos" / video).parent.mkdir(parents=True, exist_ok=True)
            (folder / "videos" / f"{video}.mp4").symlink_to(JHMDB / "videos" / f"{video}.mp4")
    torch.save(timm.create_model("tf_efficientnet_lite0").state_dict(), folder / "stem.pth")
    return folder


def run(command: str, recipe: str, folder: Path, *more: str) -> OnlookerCLI:
    """Run a recipe, narrow and on small frames, in the working directory."""
    parts = {"teacher": {"network": "backbone"}, "student_truth": {"network": "trunk"}}
    trunks = parts.get(recipe, {"network": "trunk", "teacher": "backbone"})
    widths = [f"--model.{of}.head.{name}={value}" for of in trunks for name, value in HEAD.items()]
    widths += [
        f"--model.{of}.{trunk}.size.{name}={value}" for of, trunk in trunks.items() for name, value in SIZE.items()
    ]
    source = "data.source.source" if any("few_labels" in argument for argument in more) else "data.source"
    data = [f"--{source}.videos={folder / 'videos'}", f"--{source}.annotations={JHMDB / 'JHMDB-GT.pkl'}"]
    data += ["--data.frames.short_side=48", f"--data.frames.maps={folder / 'maps'}", "--data.loader.num_workers=0"]
    files = [argument for argument in more if argument.endswith(".yaml")]
    others = [argument for argument in more if not argument.endswith(".yaml")]
    if command == "fit":
        others += ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=4"]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", f"--trainer.callbacks=[{SAVE_LAST}]"]
    precision = torch.get_float32_matmul_precision()
    try:
        config = f"--config={CONFIGS / 'jhmdb' / recipe}.yaml"
        return main([command, config, f"--name=jhmdb_{recipe}", *files, *widths, *data, *others, *quiet])
    finally:
        torch.set_float32_matmul_precision(precision)


@pytest.fixture(scope="module")
def trained(folder) -> Path:
    """The folder, once the teacher has been trained in it for two steps."""
    stem = f"--model.network.backbone.stem.weights={folder / 'stem.pth'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run("maps", "teacher", folder, stem)
        assert len(list((folder / "maps").glob("*.safetensors"))) == 6
        assert_trained(run("fit", "teacher", folder, stem, "--data.loader.batch_size=2"))
    return folder


def assert_trained(cli: OnlookerCLI) -> None:
    found = cli.trainer.callback_metrics
    assert cli.trainer.global_step == 2 and torch.isfinite(found["train/loss"])
    assert 0 <= float(found["val/map"]) <= 1
    # What a step does not reach stops a run on several GPUs; the optimiser has met everything else.
    (optimizer,) = cli.trainer.optimizers
    learned = [(name, value) for name, value in cli.model.named_parameters() if value.requires_grad]
    assert [name for name, value in learned if value not in optimizer.state] == []
    assert not any(".stem.model." in name for name, _ in learned)


@pytest.mark.parametrize("student", STUDENTS)
def test_a_students_recipe_trains_from_the_teachers_weights_and_is_evaluated(student, trained, monkeypatch):
    monkeypatch.chdir(trained)
    recipe = student.split(" ")[0]
    cli = run("fit", recipe, trained, "--data.loader.batch_size=2", *STUDENTS[student])
    assert_trained(cli)


def test_maps_of_another_stem_stop_a_training(trained, monkeypatch, tmp_path):
    monkeypatch.chdir(trained)
    torch.save(timm.create_model("tf_efficientnet_lite0").state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match="holds maps of tf_efficientnet_lite0"):
        run("fit", "teacher", trained, f"--model.network.backbone.stem.weights={tmp_path / 'other.pth'}")


def test_the_list_has_the_rows_of_the_comparison():
    rows = {run.row.name for run in runs_of(read_list(ROOT / "results" / "lists" / "jhmdb.yaml"), "jhmdb")}
    assert {"teacher", "floor", "keep_07"} <= rows
    for student in ("dsta", "tsa"):
        assert {student, f"{student}_truth", f"{student}_late", f"{student}_late_truth"} <= rows
        assert {f"untrained_{student}", f"{student}_few", f"{student}_few_truth"} <= rows
