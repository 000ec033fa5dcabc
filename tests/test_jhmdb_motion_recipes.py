"""Motion distillation on streams composed of real clips: the five rows of the list, for two steps each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from datamodules.annotations.pickles.safe_pickle import load_pickle
from main import OnlookerCLI, main
from results.experiments.lists import read_list
from results.experiments.runs import Run, runs_of

ROOT = Path(__file__).resolve().parents[1]
JHMDB = ROOT.parent / "shared" / "data" / "jhmdb"
LIST = ROOT / "results" / "lists" / "jhmdb_motion.yaml"
SAVE_LAST = '{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"save_last": true}}'
ROWS = ("motion_teacher", "rgb_baseline", "conventional", "decomposed", "two_stream")


def test_the_list_has_the_rows_of_the_comparison_with_three_seeds(monkeypatch):
    monkeypatch.chdir(ROOT)
    runs = runs_of(read_list(LIST), LIST.stem)
    assert sorted((run.row.name, run.seed) for run in runs) == sorted((row, seed) for row in ROWS for seed in range(3))
    for kind in ("fit", "test"):
        named = [run.stage(kind).overrides["data.source"] for run in runs if kind == "test" or run.row.fit]
        assert set(named) == {"configs/data/jhmdb_composed.yaml"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Six training and three test clips of the first split."""
    folder = tmp_path_factory.mktemp("jhmdb_motion")
    truth = load_pickle(JHMDB / "JHMDB-GT.pkl")
    for split, number in (("train_videos", 6), ("test_videos", 3)):
        for video in sorted(truth[split][0])[: 30 * number : 30]:
            (folder / "videos" / video).parent.mkdir(parents=True, exist_ok=True)
            (folder / "videos" / f"{video}.mp4").symlink_to(JHMDB / "videos" / f"{video}.mp4")
    return folder


def called(run: Run, kind: str, folder: Path) -> OnlookerCLI:
    """Run a command of the list as it says, on the few clips and for two steps."""
    checkpoint = folder / run.folder / "fit" / "latest" / "checkpoints" / "last.ckpt"
    needed = {
        argument: folder / needs.folder / "fit" / "latest" / "checkpoints" / "last.ckpt"
        for argument, needs in run.needs[kind].items()
    }
    given = run.arguments(kind, checkpoint if kind == "test" and run.row.fit else None, needed)
    given = [argument.replace("configs/", f"{ROOT / 'configs'}/") for argument in given]
    data = {"source.videos": folder / "videos", "source.annotations": JHMDB / "JHMDB-GT.pkl"}
    data |= {"source.root": folder / "composed", "source.clips": "[3, 3]", "source.background": "[]"}
    data |= {"frames.cache": folder / "cache", "loader.num_workers": 0, "loader.batch_size": 2}
    if run.row.name != "rgb_baseline":
        data["flow.cache"] = folder / "flow"
    small = [f"--data.{key}={value}" for key, value in data.items()]
    # Neither latency nor operations are measured: that takes longer than all else.
    small += [f"--trainer.callbacks=[{SAVE_LAST if kind == 'fit' else ''}]"]
    small += ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", "--trainer.precision=32-true"]
    if kind == "fit":
        small += ["--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1", "--data.loader.samples_per_epoch=4"]
    precision = torch.get_float32_matmul_precision()
    try:
        return main([*given, *small])
    finally:
        torch.set_float32_matmul_precision(precision)


@pytest.mark.slow
@pytest.mark.skipif(not JHMDB.is_dir(), reason=f"needs the videos of {JHMDB}")
@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")  # where pytest has arguments itself
@pytest.mark.filterwarnings("ignore:.*are not in")  # nine of 928 videos
def test_every_row_takes_two_steps_on_composed_streams_of_real_clips_and_is_tested(folder, monkeypatch):
    runs = {run.row.name: run for run in runs_of(read_list(LIST), LIST.stem) if run.seed == 0}
    monkeypatch.chdir(folder)
    for name in ROWS:
        if runs[name].row.fit:
            fitted = called(runs[name], "fit", folder)
            assert fitted.trainer.global_step == 2 and torch.isfinite(fitted.trainer.callback_metrics["train/loss"])
        tested = called(runs[name], "test", folder)
        assert 0 <= float(tested.trainer.callback_metrics["test/map"]) <= 1
        assert tested.datamodule.evaluated_on == "JHMDB split 1, 1 streams composed of 3 test clips"
        streams = tested.datamodule.videos("test")
        assert [len(stream.video.cuts) for stream in streams] == [2]
    assert len(list((folder / "composed" / "split_1" / "train").glob("composed_*.mp4"))) == 2
