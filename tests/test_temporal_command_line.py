"""Temporal detection on the command line: its experiments fit for two batches, and what they write can be scored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from callbacks.benchmark.callback import BenchmarkTable
from callbacks.benchmark.rows import BenchmarkRow, read_rows
from datamodules.flow.methods import DisFlow
from main import main

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")  # where pytest has arguments itself
THUMOS = ROOT.parent / "shared/data/thumos14/thumos14.actionformer.json"
needs_thumos = pytest.mark.skipif(not THUMOS.exists(), reason="the real annotation is not on this machine")
CLASSES = ("BaseballPitch", "BasketballDunk", "Billiards")
HEADS = ("anchor_free_tiny", "boundary_matching_tiny")


@pytest.fixture(scope="module")
def puppets(tiny_puppets, tmp_path_factory) -> Path:
    """The tiny Puppets, and where their frames and flow are kept."""
    folder = tmp_path_factory.mktemp("puppets")
    (folder / "tiny").symlink_to(tiny_puppets / "tiny")
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Runs and results go to the working directory: an empty one. What ``main`` sets is set back."""
    monkeypatch.chdir(tmp_path)
    precision = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(precision)


def arguments(name: str, puppets: Path, *, head: str | None = None) -> list[str]:
    """Arguments that let an experiment run for a moment on the tiny data."""
    config = ROOT / "configs" / f"{name}.yaml"
    data = {"frames.cache": puppets / "cache", "loader.batch_size": 2, "loader.eval_batch_size": 2}
    data |= {
        "loader.num_workers": 0,
        "loader.samples_per_epoch": 4,
        "source.init_args.root": puppets,
        "source.init_args.size": "tiny",
    }
    if " flow:" in config.read_text():
        data["flow.cache"] = puppets / "flow"
    options = [f"--data.init_args.{key}={value}" for key, value in data.items()]
    options += ["--trainer.precision=32-true", "--trainer.enable_progress_bar=false", "--trainer.max_epochs=1"]
    options += ["--trainer.check_val_every_n_epoch=1"]
    if head is not None:
        networks = [key for key in ("network", "teacher") if f" {key}:\n" in config.read_text()]
        options += [
            f"--model.init_args.{key}.init_args.head={ROOT / 'configs/networks/heads' / head}.yaml" for key in networks
        ]
    return [f"--config={config}", *options]


@pytest.fixture(scope="module")
def teacher(puppets, tmp_path_factory) -> dict[str, Path]:
    """Checkpoints of a motion teacher with either head, trained for two steps."""
    folder = tmp_path_factory.mktemp("teacher")
    checkpoints = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for head in HEADS:
            cli = main(["fit", *arguments("motion_teacher", puppets, head=head), f"--name={head}"])
            assert cli.trainer.global_step == 2
            checkpoints[head] = folder / "runs" / head / "latest" / "checkpoints" / "last.ckpt"
    return checkpoints


def rows() -> dict[str, BenchmarkRow]:
    """The newest row of each experiment in the working directory."""
    return {row.experiment: row for row in read_rows(Path("results/benchmark.jsonl"))}


@pytest.mark.slow
def test_the_rgb_baseline_fits_draws_time_lines_and_its_saved_segments_score_the_same(puppets, capsys):
    config = arguments("rgb_baseline", puppets)
    cli = main(["fit", *config])
    assert torch.isfinite(cli.trainer.callback_metrics["train/loss"]) and "val/map" in cli.trainer.callback_metrics
    run = Path("runs/rgb_baseline/latest")
    assert (run / "timelines.png").is_file()
    tested = main(["test", *config, f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}"])
    (saved,) = Path("runs/rgb_baseline").glob("version_*/segments.json")
    capsys.readouterr()
    main(["score", *config, f"--predictions={saved}"])
    assert f"validation: {100 * tested.trainer.callback_metrics['test/map']:.2f} %" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_a_distilled_detector_is_tested_without_teacher_and_without_flow(head, puppets, teacher):
    config = arguments("distill_motion", puppets, head=head)
    cli = main(["fit", *config, f"--model.init_args.teacher_weights={teacher[head]}"])
    terms = {"appearance", "joint", "motion"}
    logged = {name.split("/")[2] for name in cli.trainer.callback_metrics if name.startswith("train/loss/")}
    assert logged == terms
    checkpoint = "runs/distill_motion/latest/checkpoints/last.ckpt"
    tested = main(["test", *config, f"--ckpt_path={checkpoint}"])
    assert tested.model.teacher is None and tested.model.network.branch_head is None
    assert "test/map" in tested.trainer.callback_metrics
    assert rows()["distill_motion"].gflops_unit == "window of 24 frames"


@pytest.mark.slow
def test_the_two_stream_system_is_put_together_from_two_checkpoints_and_tested(puppets, teacher):
    main(["fit", *arguments("rgb_baseline", puppets)])
    data = {"frames.cache": puppets / "cache", "loader.num_workers": 0, "flow.cache": puppets / "flow"}
    data |= {"source.init_args.root": puppets, "source.init_args.size": "tiny"}
    options = [f"--data.init_args.{key}={value}" for key, value in data.items()]
    weights = f"--model.init_args.network.init_args.flow_weights={teacher[HEADS[0]]}"
    both = main(["test", f"--config={ROOT / 'configs' / 'two_stream.yaml'}", *options, weights])
    assert "test/map" in both.trainer.callback_metrics
    assert both.model.network.flow.backbone.in_channels == 2
    row = rows()["two_stream"]
    assert "segment mAP" in row.protocol and row.map is not None and row.gflops_unit == "window of 24 frames"


@pytest.mark.slow
def test_flow_that_the_data_compute_is_within_the_clock(puppets, teacher, monkeypatch):
    computed = []
    of_steps = DisFlow.of_steps
    monkeypatch.setattr(
        DisFlow, "of_steps", lambda self, frames: computed.append(len(frames)) or of_steps(self, frames)
    )
    config = arguments("motion_teacher", puppets)
    main(["test", *config, f"--ckpt_path={teacher[HEADS[0]]}", "--name=motion"])
    computed.clear()  # what filled the cache
    table = BenchmarkTable("motion", warmup=1, repeats=2)
    cli = main(["test", *config, f"--ckpt_path={teacher[HEADS[0]]}", "--name=motion"])
    assert len(computed) >= 3 and set(computed) == {24}, "each timed step computes the flow of its window"
    assert rows()["motion"].gflops > 0 and table.measure(cli.trainer, cli.model).frames_per_second > 24


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["none", "conventional"])
def test_the_strategies_that_the_paper_compares_run_on_a_plain_detector(strategy, puppets, teacher):
    network = ROOT / "configs" / "networks" / "temporal_tiny.yaml"
    config = [*arguments("distill_motion", puppets), f"--model.init_args.network={network}"]
    cli = main(
        [
            "fit",
            *config,
            f"--model.init_args.strategy={strategy}",
            f"--model.init_args.teacher_weights={teacher[HEADS[0]]}",
        ]
    )
    assert cli.trainer.global_step == 2


@pytest.mark.slow
def test_any_video_file_is_predicted_on_into_a_json_of_activitynets_form(puppets):
    file = next((puppets / "tiny" / "videos" / "val").glob("*.mp4"))
    config = arguments("rgb_baseline", puppets)
    main(["predict", *config, f'--data.init_args.predict_videos=["{file}"]'])
    record = json.loads(Path("runs/predictions/segments.json").read_text())
    (found,) = record["results"].values()
    assert list(record["results"]) == [file.stem] and found
    assert set(found[0]) == {"label", "score", "segment"} and 0 <= found[0]["segment"][0] < found[0]["segment"][1] <= 3


@pytest.mark.slow
def test_an_online_detector_is_tested_into_the_table_and_writes_a_line_a_frame(puppets):
    config = arguments("online_dsta", puppets)
    main(["fit", *config])
    checkpoint = "--ckpt_path=runs/online_dsta/latest/checkpoints/last.ckpt"
    tested = main(["test", *config, checkpoint])
    assert "test/calibrated_map" in tested.trainer.callback_metrics
    (row,) = (json.loads(line) for line in Path("results/benchmark.jsonl").read_text().splitlines())
    assert row["gflops_unit"] == "frame" and row["state_mib"] > 0 and "per-frame" in row["protocol"]
    main(["predict", *config, checkpoint])
    lines = [json.loads(line) for line in Path("runs/predictions/val_0000.jsonl").read_text().splitlines()]
    assert [line["timestamp"] for line in lines] == [k / 8 + 1 / 16 for k in range(24)]
    assert set(lines[0]["actions"]) <= set(tested.datamodule.class_names)


def synthetic_thumos(folder: Path) -> None:
    """An annotation in THUMOS14's form, four videos of a minute in which three things happen."""
    annotations = [
        {"label": name, "segment": [10.0 * k, 10.0 * k + 6], "label_id": k} for k, name in enumerate(CLASSES)
    ]
    entry = {"duration": 60.0, "fps": 30.0, "annotations": annotations}
    database = {
        f"video_{split}_000000{number}": entry | {"subset": split}
        for split in ("validation", "test")
        for number in range(2)
    }
    (folder / "thumos14.json").write_text(json.dumps({"version": "x", "database": database}))


@pytest.mark.slow
@pytest.mark.parametrize("annotation", ["synthetic", pytest.param("real", marks=needs_thumos)])
def test_the_recipes_for_stored_features_of_thumos14_train_distil_and_evaluate(annotation, tmp_path):
    file = tmp_path / "thumos14.json"
    if annotation == "real":
        file = THUMOS
    else:
        synthetic_thumos(tmp_path)
    entries = json.loads(file.read_text())["database"]
    chosen = sorted(entries, key=lambda name: entries[name]["subset"].lower())  # those to test on come first
    chosen = [*chosen[:4], *chosen[-4:]]
    for name in chosen:
        length = int(entries[name]["duration"] * 30 / 4) - 3
        values = np.random.default_rng(0).normal(size=(length, 64)).astype(np.float16)
        (tmp_path / "features").mkdir(exist_ok=True)
        np.save(tmp_path / "features" / f"{name}.npy", values)

    data = {"source.init_args.annotations": file, "source.init_args.test_list": 213, "loader.num_workers": 0}
    data |= {"source.init_args.features.folder": tmp_path / "features"}
    common = [f"--data.init_args.{key}={value}" for key, value in data.items()]
    common += ["--trainer.max_steps=2", "--trainer.precision=32-true", "--trainer.enable_progress_bar=false"]
    checkpoint = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"save_last": True}}
    common.append(f"--trainer.callbacks={json.dumps([checkpoint])}")

    def small(part: str) -> list[str]:
        sizes = {"dim": 32, "head.pyramid.dim": 32, "backbone.in_channels": 32}
        return [f"--model.{part}.{key}={value}" for key, value in sizes.items()]

    teacher = f"--config={ROOT / 'configs' / 'motion_teacher_thumos14_features.yaml'}"
    student = f"--config={ROOT / 'configs' / 'distill_motion_thumos14_features.yaml'}"
    main(["fit", teacher, *common, *small("network")])
    weights = "runs/motion_teacher_thumos14_features/latest/checkpoints/last.ckpt"
    distil = [student, *common, *small("network"), *small("teacher")]
    cli = main(["fit", *distil, f"--model.init_args.teacher_weights={weights}"])
    assert cli.trainer.global_step == 2 and torch.isfinite(cli.trainer.callback_metrics["train/loss"])
    tested = main(["test", *distil])
    assert "THUMOS14" in tested.model.protocol and "test/map" in tested.trainer.callback_metrics
