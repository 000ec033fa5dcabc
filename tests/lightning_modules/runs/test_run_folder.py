"""No two runs share a folder, `latest` leads to one with a checkpoint, and what is recorded is whole."""

from __future__ import annotations

import csv
import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from datamodules.errors import UserError
from lightning_modules.runs.run_folder import RunBoard, RunFolder, RunMetrics, point_latest_at


def test_folders_are_numbered_after_the_last_one(tmp_path):
    for number in ("0", "9", "10", "x"):
        (tmp_path / "evad" / f"version_{number}").mkdir(parents=True)
    folder = RunFolder(tmp_path, "evad")
    assert folder.path == tmp_path / "evad" / "version_11"
    assert folder.path.is_dir() and folder.version == 11
    assert RunFolder(tmp_path, "lists/dsta-seed0").path == tmp_path / "lists" / "dsta-seed0" / "version_0"


def test_a_run_that_never_asks_for_its_folder_leaves_none(tmp_path):
    folder = RunFolder(tmp_path, "evad")
    RunBoard(folder), RunMetrics(folder)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_leaves_its_folder_only_if_something_is_in_it(tmp_path):
    empty, started, unasked = (RunMetrics(RunFolder(tmp_path, name)) for name in ("empty", "started", "unasked"))
    assert empty.version == 0
    started.log_metrics({"train/loss": 1.0}, 0)
    for metrics in (empty, started, unasked):
        metrics.finalize("failed")
    assert list((tmp_path / "empty").iterdir()) == []
    assert started.path.is_file()
    assert not (tmp_path / "unasked").exists()


def claim_many(root: Path, start: Barrier, numbers: Queue) -> None:
    start.wait()
    numbers.put([RunFolder(root, "evad").version for _ in range(50)])


def test_processes_that_start_together_get_folders_of_their_own(tmp_path):
    forked = multiprocessing.get_context("fork")
    start, numbers = forked.Barrier(3), forked.Queue()
    processes = [forked.Process(target=claim_many, args=(tmp_path, start, numbers)) for _ in range(3)]
    for process in processes:
        process.start()
    claimed = [number for _ in processes for number in numbers.get(timeout=60)]
    for process in processes:
        process.join()
    assert sorted(claimed) == list(range(150))
    assert len(list((tmp_path / "evad").iterdir())) == 150


def test_other_processes_of_a_run_make_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning.pytorch.utilities.rank_zero_only.rank", 1)
    folder = RunFolder(tmp_path, "evad")
    RunMetrics(folder).log_metrics({"train/loss": 1.0}, 0)
    assert folder.version is None and list(tmp_path.iterdir()) == []


def test_where_no_folder_can_be_made_the_place_is_named(tmp_path):
    (tmp_path / "evad").touch()
    with pytest.raises(UserError, match=r"evad: no folder for the run can be made"):
        _ = RunFolder(tmp_path, "evad").version


def test_latest_leads_to_the_run_that_was_named_last(tmp_path):
    for number in range(3):
        folder = tmp_path / f"version_{number}"
        folder.mkdir()
        point_latest_at(folder)
        assert (tmp_path / "latest").readlink() == Path(folder.name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "version_0", "version_1", "version_2"]


def test_latest_is_there_at_every_moment(tmp_path):
    folders = [tmp_path / f"version_{number}" for number in range(2)]
    for folder in folders:
        folder.mkdir()
    point_latest_at(folders[0])
    done, missing = threading.Event(), []

    def look() -> None:
        while not done.is_set():
            if not (tmp_path / "latest").is_dir():
                missing.append(True)

    with ThreadPoolExecutor() as pool:
        looking = pool.submit(look)
        for number in range(300):
            point_latest_at(folders[number % 2])
        done.set()
        looking.result()
    assert not missing


def test_a_folder_called_latest_is_left_alone_and_that_is_reported(tmp_path):
    (tmp_path / "latest" / "mine").mkdir(parents=True)
    (tmp_path / "version_0").mkdir()
    with pytest.warns(UserWarning, match="latest does not lead to this run"):
        point_latest_at(tmp_path / "version_0")
    assert (tmp_path / "latest" / "mine").is_dir()


def test_latest_is_moved_when_the_last_checkpoint_is_there(tmp_path):
    metrics = RunMetrics(RunFolder(tmp_path, "evad"))
    checkpoint = SimpleNamespace(save_last=True, last_model_path="")
    metrics.after_save_checkpoint(checkpoint)  # of the two that are written at an epoch's end, the first
    assert not (tmp_path / "evad" / "latest").exists()
    checkpoint.last_model_path = "last.ckpt"
    metrics.after_save_checkpoint(checkpoint)
    assert (tmp_path / "evad" / "latest").readlink() == Path("version_0")


def test_without_a_last_checkpoint_any_one_moves_latest(tmp_path):
    metrics = RunMetrics(RunFolder(tmp_path, "evad"))
    metrics.after_save_checkpoint(SimpleNamespace(save_last=None, last_model_path=""))
    assert (tmp_path / "evad" / "latest").is_symlink()


def rows(metrics: RunMetrics) -> list[dict[str, str]]:
    with metrics.path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_row_is_on_the_disk_at_once_under_all_columns(tmp_path):
    metrics = RunMetrics(RunFolder(tmp_path, "evad"))
    metrics.log_metrics({"train/loss": torch.tensor(0.5)}, 9)
    assert rows(metrics) == [{"step": "9", "train/loss": "0.5"}]
    metrics.log_metrics({"train/loss": 0.25}, 19)
    metrics.log_metrics({"val/map": 0.125, "epoch": 0}, 20)
    metrics.log_metrics({"train/loss": 0.1}, 29)
    assert [row["step"] for row in rows(metrics)] == ["9", "19", "20", "29"]
    assert rows(metrics)[2] == {"epoch": "0", "step": "20", "train/loss": "", "val/map": "0.125"}
    assert rows(metrics)[3]["train/loss"] == "0.1"


def test_a_full_disk_leaves_whole_rows_and_is_named(small_disk):
    metrics = RunMetrics(RunFolder(small_disk, "evad"))
    with pytest.raises(UserError, match=r"metrics\.csv: cannot be written: No space left"):
        for step in range(100_000):
            metrics.log_metrics({"train/loss": 1 / 3, "lr": 1e-4}, step)
    found = rows(metrics)
    assert len(found) > 1000 and all(row["step"] == str(step) for step, row in enumerate(found))
    assert all(len(row["train/loss"]) == len(str(1 / 3)) for row in found)
