"""Two processes train, and find what one process finds."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from lightning_modules.networks.weights import save_weights
from main import main
from tests.lightning_modules import tiny

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")  # where pytest has arguments itself
ROOT = Path(__file__).resolve().parent.parent
SECONDS = 600
"""After which processes that wait for each other are ended."""
FRESH_RUN = ("--trainer.logger=false", "--trainer.enable_checkpointing=false", "--trainer.callbacks=[]")
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three experiments of the smallest size, their weights, and no data yet."""
    folder = tmp_path_factory.mktemp("ddp")
    shapes = tiny.SHAPES | {"num_classes": 10}
    networks = "lightning_modules.networks"
    clip = {"class_path": f"{networks}.evad.EvadTeacher", "init_args": shapes | {"keep_rates": {1: 0.8}}}
    streaming = {
        "class_path": f"{networks}.student.StreamingDetector",
        "init_args": shapes | {"temporal": "dsta", "window": 3},
    }
    models = {
        "clip": ("clip_detection.ClipDetectionModule", {"network": clip}),
        "stream": ("stream_detection.StreamDetectionModule", {"network": streaming}),
        "distil": (
            "distillation.DistillationModule",
            {"network": streaming, "teacher": clip, "teacher_weights": str(folder / "clip.pt")},
        ),
    }
    source = {"class_path": "datamodules.puppets.Puppets", "init_args": {"root": str(folder), "size": "tiny"}}
    shared = {"source": source, "frame_stride": 3, "batch_size": 2, "short_side": 64, "cache": str(folder / "cache")}
    windows = {"train_past_frames": 5, "train_future_frames": 1, "loss_frames": 2, "lanes": 1, "chunk_frames": 5}
    data = {
        "clip": ("clip.ClipDataModule", {"num_frames": 4, "eval_batch_size": 5}),
        "stream": ("stream.StreamDataModule", windows),
    }
    for name, (module, arguments) in models.items():
        datamodule, settings = data["clip" if name == "clip" else "stream"]
        config = {
            "model": {"class_path": f"lightning_modules.{module}", "init_args": arguments},
            "data": {"class_path": f"datamodules.{datamodule}", "init_args": shared | settings},
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    save_weights(tiny.teacher(num_classes=10).state_dict(), folder / "clip.pt")
    save_weights(tiny.student(num_classes=10).state_dict(), folder / "stream.pt")
    return folder


def command(action: str, folder: Path, name: str, *more: str) -> list[str]:
    config = f"--config={folder / name}.yaml"
    return [action, config, f"--trainer.default_root_dir={folder}", *FRESH_RUN, *QUIET, *more]


def evaluation(folder: Path, name: str) -> list[str]:
    weights = f"--model.init_args.weights={folder / name}.pt"
    # Random weights score everybody low, and a clip detector would need all clips of a video on one process.
    linking = [f"--model.init_args.video_map.{threshold}=0" for threshold in ("min_score", "score_threshold")]
    callbacks = "--trainer.callbacks+=tests.lightning_modules.tiny.Results"
    return command("test", folder, name, weights, callbacks, *(linking if name == "stream" else ()))


def on_two_processes(folder: Path, jobs: list[list[str]]) -> list[dict[str, float]]:
    """What the jobs found, each run by two processes together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    (folder / "jobs.json").write_text(json.dumps(jobs))
    arguments = [sys.executable, str(ROOT / "tests" / "ddp_worker.py"), "jobs.json", "results.json"]
    shared = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    # Lightning takes processes with these variables for those of torchrun, and starts none itself.
    shared |= {"TORCHELASTIC_RUN_ID": "test", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    processes = [
        subprocess.Popen(
            arguments,
            cwd=folder,
            env=shared | {"RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in ("0", "1")
    ]
    try:
        said = [process.communicate(timeout=SECONDS)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(text[-4000:] for text in said)
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
    ]
    fits = [[*fit, "--trainer.limit_val_batches=0"] for fit in fits]
    found = on_two_processes(folder, [*fits, *([*evaluation(folder, name), *two] for name in names)])
    assert [result["world_size"] for result in found] == [2] * 4
    for trained in found[:2]:
        assert torch.tensor(trained["train/loss"]).isfinite()
    for name, tested, (numbers, num_frames) in zip(names, found[2:], alone, strict=True):
        assert tested["num_frames"] == num_frames, name
        assert {key: tested[key] for key in numbers} == pytest.approx(numbers, abs=1e-6), name


@pytest.mark.slow
def test_the_command_line_starts_its_processes_itself(folder):
    arguments = command("fit", folder, "stream", "--trainer.devices=2", "--trainer.strategy=ddp")
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "main.py"), *arguments, "--trainer.max_steps=1", "--trainer.limit_val_batches=0"],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that its children can be ended with it
    )
    try:
        said, _ = process.communicate(timeout=SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 9)
    assert process.returncode == 0, said[-4000:]
    assert "`max_steps=1` reached" in said
