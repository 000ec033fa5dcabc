"""The table from a real ``trainer.test``, and its file as rows are added by hand."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from typing import NamedTuple

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from callbacks.benchmark.callback import BenchmarkTable
from callbacks.benchmark.provenance import commit
from callbacks.benchmark.rows import BenchmarkRow, enter, read_rows
from callbacks.benchmark.table import render_table
from datamodules.errors import UserError
from lightning_modules.evaluation.benchmark import Benchmark


class State(NamedTuple):
    past: Tensor


class TinyStream(LightningModule):
    """A network of one linear layer that remembers its last frame."""

    protocol = "ava frame mAP@0.5, frame_stride 2"

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(4, 1000)
        self.teacher = nn.Linear(1000, 1000)  # not what is measured
        self.calls: list[tuple[bool, bool]] = []
        self.offers: dict[str, object] = {}

    def test_step(self, batch, batch_idx):
        self.log("test/map", torch.tensor(0.4567), batch_size=len(batch))

    def step(self):
        self.calls.append((self.network.training, torch.is_grad_enabled()))
        return self.network(torch.zeros(1, 4, device=self.device, dtype=self.dtype))

    def benchmark(self):
        frame = torch.zeros(1, 4, device=self.device, dtype=self.dtype)
        state = State(torch.zeros(1, 512, 1024, dtype=torch.float16))
        return replace(Benchmark(self.network, (frame,), "frame", self.step, state=state), **self.offers)


def run_test(module, folder, precision="32-true", **options):
    trainer = Trainer(
        accelerator="cpu",
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[BenchmarkTable(folder=folder / "results", warmup=1, repeats=3, **options)],
    )
    trainer.test(module, DataLoader(torch.zeros(2, 4)), verbose=False)
    return trainer


ROW = BenchmarkRow.from_record(
    {
        "experiment": "distill_dsta",
        "weights": "runs/distill_dsta/last.ckpt",
        "protocol": "ava frame mAP@0.5, frame_stride 2",
        "map": 0.5,
        "parameters": 2_500_000,
        "gflops": 1.25,
        "gflops_unit": "frame",
        "uncounted_operators": [],
        "latency_p50_ms": 10.0,
        "latency_p95_ms": 11.0,
        "latency_p99_ms": 12.0,
        "frames_per_second": 99.0,
        "state_mib": 1.5,
        "device": "a CPU",
        "threads": 1,
        "precision": "32-true",
        "seed": 0,
        "commit": "abc1234",
        "time": "2026-11-20T12:00:00+00:00",
        "speedup": 4.0,
    }
)
TEACHER = replace(ROW, experiment="teacher", gflops_unit="clip", latency_p50_ms=40.0, state_mib=0.0)


def cells(table: str) -> dict[str, dict[str, str]]:
    """Experiment to heading to cell."""
    heading, _, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines())
    return {line[0]: dict(zip(heading, line, strict=True)) for line in lines}


def test_a_tested_module_gets_its_row(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    module = TinyStream()
    run_test(module, tmp_path, experiment="tiny")
    (row,) = read_rows(tmp_path / "results/benchmark.jsonl")
    assert row.experiment == "tiny" and row.weights == "as configured"
    assert row.map == pytest.approx(0.4567) and row.protocol == module.protocol
    assert row.parameters == 5000
    assert row.gflops == pytest.approx(4e-6) and row.gflops_unit == "frame"
    assert 0 < row.latency_p50_ms <= row.latency_p95_ms <= row.latency_p99_ms
    assert row.state_mib == 1
    assert (row.seed, row.threads, row.precision) == (7, torch.get_num_threads(), "32-true")
    page = (tmp_path / "results/benchmark.md").read_text()
    table = page[page.index("| experiment") :]
    printed = capsys.readouterr().out
    assert "multiply-add once" in page and f"all columns are in {tmp_path / 'results' / 'benchmark.md'}" in printed
    shown = cells(printed[printed.index("| experiment") : printed.index("all columns")])["tiny"]
    assert len(shown) == 8 and shown.items() <= cells(table)["tiny"].items()
    assert cells(table)["tiny"]["mAP %"] == "45.67"
    assert sorted(file.name for file in (tmp_path / "results").iterdir()) == ["benchmark.jsonl", "benchmark.md"]


def test_steps_run_in_evaluation_mode_without_gradients_after_warmup(tmp_path):
    module = TinyStream()
    run_test(module, tmp_path)
    assert module.calls == [(False, False)] * 4
    assert read_rows(tmp_path / "results/benchmark.jsonl")[0].experiment == "TinyStream"


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_figures_are_those_of_the_precision_of_the_run(tmp_path, precision):
    module = TinyStream()
    outputs = []
    module.network.register_forward_hook(lambda _, __, output: outputs.append(output.dtype))
    run_test(module, tmp_path, precision=precision)
    (row,) = read_rows(tmp_path / "results/benchmark.jsonl")
    assert row.precision == precision and row.gflops == pytest.approx(4e-6)
    assert set(outputs) == {torch.bfloat16}


def test_a_module_without_the_protocol_is_refused_with_the_way_out(tmp_path):
    class Plain(LightningModule):
        def test_step(self, batch, batch_idx):
            pass

    with pytest.raises(UserError, match="Plain: cannot be measured"):
        run_test(Plain(), tmp_path)


def test_newest_row_of_an_experiment_is_shown_and_all_are_kept(tmp_path):
    file = tmp_path / "benchmark.jsonl"
    for row in (ROW, TEACHER, replace(ROW, map=0.75)):
        enter(tmp_path, row)
    assert [row.map for row in read_rows(file)] == [0.5, 0.5, 0.75]
    file.write_text(file.read_text().rstrip("\n"))
    enter(tmp_path, replace(ROW, map=0.75))
    assert len(read_rows(file)) == 4
    shown = cells(render_table(read_rows(file)))
    assert list(shown) == ["distill_dsta", "teacher"]
    assert shown["distill_dsta"]["mAP %"] == "75.00"
    assert shown["distill_dsta"]["weights"] == "distill_dsta/last.ckpt"
    assert shown["distill_dsta"]["GFLOPs"] == "1.25 / frame"
    assert (shown["teacher"]["state MiB"], shown["distill_dsta"]["state MiB"]) == ("-", "1.500")


def test_the_speedup_is_shown_where_there_was_something_to_compare_with():
    shown = cells(render_table([replace(TEACHER, speedup=None), ROW]))
    assert (shown["teacher"]["speed-up"], shown["distill_dsta"]["speed-up"]) == ("-", "4.00x")


def test_the_reference_is_timed_in_turn_with_the_module_and_its_time_is_not_the_modules(tmp_path):
    module = TinyStream()
    order = []

    def slow_reference():
        order.append("reference")
        time.sleep(0.02)

    module.offers = {"reference": slow_reference, "step": lambda: order.append("own")}
    run_test(module, tmp_path)
    (row,) = read_rows(tmp_path / "results" / "benchmark.jsonl")
    assert order == ["reference", "own"] * 4  # one round to warm up, three timed
    assert row.speedup > 10
    assert row.latency_p50_ms < 2


def test_without_a_reference_there_is_no_speedup(tmp_path):
    run_test(TinyStream(), tmp_path)
    (row,) = read_rows(tmp_path / "results" / "benchmark.jsonl")
    assert row.speedup is None


def test_published_arithmetic_stands_beside_what_is_executed_where_the_module_offers_it(tmp_path):
    module = TinyStream()
    module.offers = {"published_gflops": 0.0123}
    run_test(module, tmp_path, experiment="tiny")
    (row,) = read_rows(tmp_path / "results" / "benchmark.jsonl")
    assert row.gflops_published == 0.0123 and row.gflops == pytest.approx(4e-6)
    assert cells(render_table([row]))["tiny"]["GFLOPs"] == "4e-06 / frame (0.0123 by published arithmetic)"


def test_rows_with_without_and_from_before_published_arithmetic_are_rendered():
    rows = [ROW, replace(ROW, experiment="student", gflops_published=None)]
    rows.append(replace(TEACHER, gflops=237.866, gflops_published=242.780))
    shown = cells(render_table(rows))
    assert shown["distill_dsta"]["GFLOPs"] == shown["student"]["GFLOPs"] == "1.25 / frame"
    assert shown["teacher"]["GFLOPs"] == "237.9 / clip (242.8 by published arithmetic)"


def test_missing_figures_and_incomplete_counts_are_visible():
    row = replace(ROW, map=None, seed=None, uncounted_operators=["aten::cdist"], protocol="a|b")
    shown = cells(render_table([row]))["distill_dsta"]
    assert (shown["mAP %"], shown["seed"], shown["protocol"]) == ("-", "-", "a/b")
    assert shown["GFLOPs"] == "1.25 / frame (incomplete)"


def test_a_step_that_adds_several_frames_counts_them_all(tmp_path):
    module = TinyStream()
    module.offers = {"unit": "window of 48 frames", "new_frames": 48, "step": lambda: time.sleep(0.002)}
    run_test(module, tmp_path)
    (row,) = read_rows(tmp_path / "results" / "benchmark.jsonl")
    assert row.gflops_unit == "window of 48 frames" and row.latency_p50_ms >= 2
    assert row.frames_per_second <= 48 / 0.002


def test_a_line_that_is_no_row_is_reported_with_its_number_and_left_out(tmp_path):
    file = tmp_path / "benchmark.jsonl"
    file.write_text(json.dumps(asdict(ROW)) + "\n\n{half\n" + json.dumps({"experiment": "x"}) + "\n")
    with pytest.warns(UserWarning) as warned:
        assert read_rows(file) == [ROW]
    assert [str(warning.message).split(" is ")[0] for warning in warned] == [f"{file}:3", f"{file}:4"]


def test_half_a_row_at_the_end_is_cut_back_and_reported(tmp_path):
    enter(tmp_path, ROW)
    file = tmp_path / "benchmark.jsonl"
    with file.open("a") as handle:
        handle.write(json.dumps(asdict(TEACHER))[:100])
    with pytest.warns(UserWarning, match="ended in half a row"):
        enter(tmp_path, TEACHER)
    assert read_rows(file) == [ROW, TEACHER]


def test_a_full_disk_leaves_the_rows_before_and_names_the_file(small_disk):
    enter(small_disk, ROW)
    page = (small_disk / "benchmark.md").read_bytes()
    full = small_disk / "full"
    with pytest.raises(OSError, match="No space"), full.open("wb", buffering=0) as handle:
        while handle.write(b"0" * 512):
            pass
    with pytest.raises(UserError, match=r"cannot be written: No space left"):
        for _ in range(100):  # the last block of the file may have room for a few
            enter(small_disk, replace(TEACHER, weights="w" * 4000))
    assert read_rows(small_disk / "benchmark.jsonl")[0] == ROW
    assert (small_disk / "benchmark.md").read_bytes() == page
    full.unlink()
    enter(small_disk, TEACHER)
    assert read_rows(small_disk / "benchmark.jsonl")[-1] == TEACHER


@pytest.mark.slow
def test_rows_that_are_entered_together_all_stand_in_file_and_page(tmp_path):
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(partial(enter, tmp_path), [replace(ROW, experiment=f"run {number}") for number in range(24)]))
    names = {f"run {number}" for number in range(24)}
    assert {row.experiment for row in read_rows(tmp_path / "benchmark.jsonl")} == names
    page = (tmp_path / "benchmark.md").read_text()
    assert cells(page[page.index("| experiment") :]).keys() == names


def test_commit_names_the_state_of_the_code_and_forgives_results(tmp_path):
    assert commit(tmp_path) == "unknown"

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / "results").mkdir()
    (tmp_path / "callbacks").mkdir()
    for name in ("main.py", "results/benchmark.md"):
        (tmp_path / name).write_text("before")
    git("add", ".")
    git("commit", "-m", "first")
    clean = commit(tmp_path / "callbacks")
    assert 7 <= len(clean) <= 12
    (tmp_path / "results/benchmark.md").write_text("after")
    assert commit(tmp_path / "callbacks") == clean
    (tmp_path / "main.py").write_text("after")
    assert commit(tmp_path / "callbacks") == f"{clean}-dirty"
