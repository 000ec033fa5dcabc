"""Behaviour that the DataModules of all sources share."""

import os
import signal
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from torch.utils.data import Dataset, SequentialSampler
from tqdm import tqdm

from datamodules.errors import UserError
from datamodules.source_data import SourceDataModule, _named


def test_files_to_predict_on_have_short_names_that_tell_them_apart():
    assert _named(["a/one.mp4", Path("b/two.avi")]) == [("one", Path("a/one.mp4")), ("two", Path("b/two.avi"))]
    assert [name for name, _ in _named(["a/1.mp4", "b/1.mp4", "b/2.mp4"])] == ["a/1.mp4", "b/1.mp4", "b/2.mp4"]
    assert [name for name, _ in _named(["1.mp4", "1.avi"])] == ["1.mp4", "1.avi"]


@pytest.mark.parametrize("again", ["a/1.mp4", "a/./1.mp4", "a//1.mp4"])
def test_a_file_to_predict_on_that_is_named_twice_is_refused(again):
    with pytest.raises(UserError, match=r"predict_videos: the file 'a/1\.mp4' is there 2 times \(number 1, 3\)"):
        _named(["a/1.mp4", "b/1.mp4", again])


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's list of processes")


class LargeBatches(Dataset):
    """Batches of 900 tensors, of which no pipe holds two; the first says which process has made it."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, number: int) -> tuple[torch.Tensor, ...]:
        return torch.tensor(os.getpid()), *torch.zeros(900, 1)


def read_two_and_wait(workers: Connection) -> None:
    data = LargeBatches()
    batches = iter(SourceDataModule._loader(None, data, SequentialSampler(data), num_workers=2))  # type: ignore[arg-type]
    workers.send([int(next(batches)[0]) for _ in range(2)])
    time.sleep(600)


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(("num_workers", "seconds"), [(0, 10), (1, 0)])
def test_no_bar_starts_a_thread_while_workers_are_forked(monkeypatch, num_workers, seconds):
    """Seen in CI: a worker that was forked while tqdm's thread began never returned from the fork."""
    monkeypatch.setattr(tqdm, "monitor_interval", 10)
    data = LargeBatches()
    SourceDataModule._loader(None, data, SequentialSampler(data), num_workers)  # type: ignore[arg-type]
    assert TQDMProgressBar().init_train_tqdm().monitor_interval == seconds


def wait_for_workers_that_come_late() -> None:
    os.register_at_fork(after_in_child=lambda: time.sleep(2))
    next(iter(SourceDataModule._loader(None, LargeBatches(), SequentialSampler(LargeBatches()), num_workers=2)))  # type: ignore[arg-type]


def assert_end(workers: list[int]) -> None:
    until = time.monotonic() + 30
    while any(map(is_alive, workers)) and time.monotonic() < until:
        time.sleep(0.1)
    left = [worker for worker in workers if is_alive(worker)]
    for worker in left:
        os.kill(worker, signal.SIGKILL)
    assert not left


@needs_proc
def test_workers_end_with_their_process_however_it_ends_and_whatever_waits_to_be_fetched():
    here, there = get_context("fork").Pipe(duplex=False)
    process = get_context("fork").Process(target=read_two_and_wait, args=(there,))
    process.start()
    workers = here.recv()
    time.sleep(1)  # until the next batches wait
    assert all(map(is_alive, workers))
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert_end(workers)


@needs_proc
def test_workers_whose_process_is_killed_before_they_have_begun_end_as_well():
    process = get_context("fork").Process(target=wait_for_workers_that_come_late)
    process.start()
    children, workers = Path(f"/proc/{process.pid}/task/{process.pid}/children"), []
    while len(workers) < 2:
        workers = list(map(int, children.read_text().split()))
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert all(map(is_alive, workers))
    assert_end(workers)
