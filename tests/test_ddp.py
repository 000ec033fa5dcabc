"""Two processes train, and find what one process finds."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import pytest
import torch
import yaml

from lightning_modules.networks.weights.loading import save_weights
from main import main
from tests.flat_data import grouped
from tests.forked import SECONDS, Forked
from tests.lightning_modules import tiny
from tests.networks.tiny import student_config, teacher_config

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")  # where pytest has arguments itself
ROOT = Path(__file__).resolve().parent.parent
FRESH_RUN = ("--trainer.logger=false", "--trainer.enable_checkpointing=false", "--trainer.callbacks=[]")
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three experiments of the smallest size, their weights, and no data yet."""
    folder = tmp_path_factory.mktemp("ddp")
    shapes = {name: value for name, value in tiny.SHAPES.items() if name != "num_classes"}  # that of the data
    clip = teacher_config(shapes | {"keep_rates": {1: 0.8}})
    streaming = student_config("dsta", shapes | {"window": 3})
    models = {
        "clip": ("ClipDetectionModule", {"network": clip}),
        "stream": ("StreamDetectionModule", {"network": streaming}),
        "distil": (
            "DistillationModule",
            {"network": streaming, "teacher": clip, "teacher_weights": str(folder / "clip.pt")},
        ),
    }
    source = {"class_path": "Puppets", "init_args": {"root": str(folder), "size": "tiny"}}
    shared = {"source": source, "frame_stride": 3, "batch_size": 2, "short_side": 64, "cache": str(folder / "cache")}
    windows = {"train_past_frames": 5, "train_future_frames": 1, "loss_frames": 2, "lanes": 1, "chunk_frames": 5}
    data = {
        "clip": ("ClipDataModule", {"num_frames": 4, "eval_batch_size": 5}),
        "stream": ("StreamDataModule", windows),
    }
    for name, (module, arguments) in models.items():
        datamodule, settings = data["clip" if name == "clip" else "stream"]
        config = {
            "model": {"class_path": module, "init_args": arguments},
            "data": {"class_path": datamodule, "init_args": grouped(shared | settings)},
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    save_weights(tiny.teacher(num_classes=10).state_dict(), folder / "clip.pt")
    save_weights(tiny.student(num_classes=10).state_dict(), folder / "stream.pt")
    return folder


@pytest.fixture(scope="module")
def temporal(folder) -> Path:
    """A temporal detector and its distillation, whose teacher has the weights that the detector is given."""
    parts = {
        "backbone": {
            "class_path": "ShiftedImageBackbone",
            "init_args": {"name": "test_resnet"},
        },
        "head": {
            "class_path": "AnchorFreeHead",
            "init_args": {"pyramid": {"dim": 16, "num_levels": 2}, "class_prior": 0.3},
        },
        "dim": 16,
    }
    detector = {"class_path": "TemporalDetector", "init_args": parts}
    student = {"class_path": "DecomposedDetector", "init_args": parts}
    source = {
        "class_path": "PuppetSegments",
        "init_args": {"root": str(folder), "size": "tiny"},
    }
    data = {"source": source, "window_steps": 8, "frame_rate": 8.0, "short_side": 32, "windows_per_epoch": 8}
    data |= {"cache": str(folder / "cache"), "eval_batch_size": 3, "horizontal_flip": 0.0}
    models = {
        "temporal": ("TemporalDetectionModule", {"network": detector}),
        "motion": (
            "MotionDistillationModule",
            {
                "network": student,
                "teacher": detector,
                "teacher_weights": str(folder / "temporal.pt"),
                "teacher_modality": "temporal_gradient",
            },
        ),
    }
    for name, (module, arguments) in models.items():
        config = {
            "model": {"class_path": module, "init_args": arguments},
            "data": {"class_path": "SegmentDataModule", "init_args": grouped(data)},
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return folder


def command(action: str, folder: Path, name: str, *more: str) -> list[str]:
    config = f"--config={folder / name}.yaml"
    return [action, config, f"--trainer.default_root_dir={folder}", *FRESH_RUN, *QUIET, *more]


def evaluation(folder: Path, name: str) -> list[str]:
    weights = f"--model.init_args.weights={folder / name}.pt"
    # Random weights score everybody low, and a clip detector would need all clips of a video on one process.
    linking = [f"--model.detection.video_map.{threshold}=0" for threshold in ("min_score", "score_threshold")]
    callbacks = "--trainer.callbacks+=tests.lightning_modules.tiny.Results"
    return command("test", folder, name, weights, callbacks, *(linking if name == "stream" else ()))


def on_two_processes(folder: Path, jobs: list[list[str]]) -> list[dict[str, float]]:
    """Results of the jobs, each run by two processes together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    (folder / "jobs.json").write_text(json.dumps(jobs))
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    # Lightning takes processes with these variables for those of torchrun, and starts none itself.
    shared |= {"TORCHELASTIC_RUN_ID": "test", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    worker, files = ROOT / "tests" / "ddp_worker.py", ("jobs.json", "results.json")
    with chdir(folder):
        processes = [Forked(files, worker, shared | {"RANK": rank, "LOCAL_RANK": rank}) for rank in ("0", "1")]
    try:
        found = [process.wait() for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert found == [0, 0], "\n".join(process.out[-4000:] for process in processes)
    return json.loads((folder / "results.json").read_text())


@pytest.mark.slow
def test_two_processes_train_and_find_what_one_finds(folder, monkeypatch):
    monkeypatch.chdir(folder)
    precision = torch.get_float32_matmul_precision()
    two = ("--trainer.devices=2", "--trainer.strategy=ddp")
    names = ("clip", "stream")
    alone = []
    for name in names:
        cli = main([*evaluation(folder, name), "--trainer.devices=1"])
        (results,) = (callback for callback in cli.trainer.callbacks if isinstance(callback, tiny.Results))
        found_alone = {key: float(value) for key, value in cli.trainer.callback_metrics.items() if "map" in key}
        alone.append((found_alone, int(results.result["num_frames"])))
        assert found_alone["test/map"] > 0
    assert alone[1][0]["test/video_map_20"] > 0
    torch.set_float32_matmul_precision(precision)  # ``main`` raised it for the whole process

    # Part of the training shows one slot of the clip alone, and part keeps the weights of the tasks frozen: in both
    # some parameters have nothing to learn, which DDP must survive. Three steps, since it complains one step late.
    fits = [
        command("fit", folder, "clip", "--trainer.max_steps=3", "--model.init_args.one_slot_until=0.5", *two),
        command("fit", folder, "distil", "--trainer.max_steps=3", *two),
        command("fit", folder, "stream", "--trainer.max_steps=1", *two),
    ]
    fits = [[*fit, "--trainer.limit_val_batches=0"] for fit in fits]
    found = on_two_processes(folder, [*fits, *([*evaluation(folder, name), *two] for name in names)])
    assert [result["world_size"] for result in found] == [2] * 5
    for trained in found[:3]:
        assert torch.tensor(trained["train/loss"]).isfinite()
    for name, tested, (numbers, num_frames) in zip(names, found[3:], alone, strict=True):
        assert tested["num_frames"] == num_frames, name
        assert {key: tested[key] for key in numbers} == pytest.approx(numbers, abs=1e-6), name


@pytest.mark.slow
def test_two_processes_distil_motion_and_find_the_segments_that_one_finds(temporal, monkeypatch):
    monkeypatch.chdir(temporal)
    precision = torch.get_float32_matmul_precision()
    cli = main([*command("fit", temporal, "temporal"), "--trainer.max_steps=2", "--trainer.limit_val_batches=0"])
    save_weights(cli.model.network.state_dict(), temporal / "temporal.pt")
    two = ("--trainer.devices=2", "--trainer.strategy=ddp")

    def test(file: str, *more: str) -> list[str]:
        callback = {
            "class_path": "SegmentFile",
            "init_args": {"path": str(temporal / file)},
        }
        weights = f"--model.init_args.weights={temporal / 'temporal.pt'}"
        return [*command("test", temporal, "temporal", weights), f"--trainer.callbacks={json.dumps([callback])}", *more]

    alone = main([*test("one.json"), "--trainer.devices=1"]).trainer.callback_metrics
    torch.set_float32_matmul_precision(precision)
    distil = [*command("fit", temporal, "motion"), "--trainer.max_steps=3", "--trainer.limit_val_batches=0", *two]
    distilled, tested = on_two_processes(temporal, [distil, test("two.json", *two)])
    assert torch.tensor(distilled["train/loss"]).isfinite()
    assert tested["test/map"] == pytest.approx(float(alone["test/map"]), abs=1e-6)
    one, both = (json.loads((temporal / f"{name}.json").read_text())["results"] for name in ("one", "two"))
    assert {video: len(found) for video, found in both.items()} == {video: len(found) for video, found in one.items()}
    assert len(one) == 2 and all(one.values())


@pytest.mark.slow
def test_two_machines_train_together_by_torchrun(folder):
    """Two nodes of one process each, on two agents that meet at a port, share data and agree on one mAP."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    arguments = command("fit", folder, "clip", "--trainer.num_nodes=2", "--trainer.devices=1", "--trainer.strategy=ddp")
    arguments += ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=2"]
    arguments += ["--trainer.enable_progress_bar=true"]
    agents = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"),
                *(f"--node_rank={rank}", "--master_addr=127.0.0.1", f"--master_port={port}"),
                *(str(ROOT / "main.py"), *arguments),
            ],
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for rank in range(2)
    ]
    try:
        said = [agent.communicate(timeout=SECONDS)[0] for agent in agents]
    finally:
        for agent in agents:
            if agent.poll() is None:
                os.killpg(agent.pid, 9)
    assert [agent.returncode for agent in agents] == [0, 0], "\n".join(text[-4000:] for text in said)
    assert "MEMBER: 2/2" in said[1] and "`max_epochs=1` reached" in said[0]
    assert [len(set(re.findall(r"val/map=([0-9.e-]+)", text))) for text in said] == [1, 0]
