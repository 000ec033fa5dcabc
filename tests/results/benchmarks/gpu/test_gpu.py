"""The GPU benchmark at a size that takes no time, on a CPU; captured graphs where there is a GPU."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from torch.utils._pytree import tree_leaves

from lightning_modules.command_line.precision import cpu_computes_bfloat16
from results.benchmarks.gpu import parts, processes, steps, text, training
from results.benchmarks.gpu.__main__ import main
from results.benchmarks.gpu.forms import FORMS, LANE_FORMS, REFERENCE, Form, Runner, set_tf32
from results.benchmarks.gpu.processes import Settings
from results.benchmarks.gpu.steps import Candidate
from tests.networks.tiny import CONFIG, randomise, student_of, teacher_of, tiny_student, tiny_teacher
from tests.results.benchmarks.gpu import measured_parts

CPU = torch.device("cpu")
SETTINGS = Settings("cpu", "tiny", 3)
FACTS = {"command": "python -m results.benchmarks.gpu", "commit": "abc", "time": "now", "minutes": 1.0}
FACTS |= {"frames": 16, "clips": 3}


def student(temporal: str = "dsta"):
    return randomise(tiny_student(temporal, look_ahead=1, boxes_from="next"))


@pytest.mark.parametrize("temporal", ["tsa", "dsta"])
@torch.no_grad()
def test_a_runner_finds_in_a_stream_what_the_network_finds_in_it_at_once(temporal):
    network = student(temporal)
    frames = steps.material(network, 64, 2)[:6]  # (N, lanes, 1, 3, H, W)
    found = Runner(network, REFERENCE, 64, 2).outputs(frames)
    expected, _ = network(frames[:, :, 0].transpose(0, 1), network.initial_state(2, (64, 64)))
    for part, whole in zip(zip(*found, strict=True), expected, strict=True):
        torch.testing.assert_close(torch.stack(part, dim=1), whole, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_lane_that_holds_keeps_its_state_and_one_that_begins_has_a_fresh_one():
    network = student()
    runner = Runner(network, REFERENCE, 64, 2)
    frames = steps.material(network, 64, 2)[:3]
    runner.outputs(frames[:2])
    before = [leaf.clone() for leaf in tree_leaves(runner.state)]
    runner.holds[1] = True
    runner.run()
    after = tree_leaves(runner.state)
    assert all(torch.equal(old[1], new[1]) for old, new in zip(before, after, strict=True))
    assert any(not torch.equal(old[0], new[0]) for old, new in zip(before, after, strict=True))
    # Whatever it has seen before, a stream that begins anew finds the same.
    again, first = runner.outputs(frames), Runner(network, REFERENCE, 64, 2).outputs(frames)
    assert all(torch.equal(own[0], other[0]) for own, other in zip(again[0], first[0], strict=True))


@torch.no_grad()
def test_a_clip_runs_in_place():
    network = tiny_teacher()
    clips = steps.material(network, 64, 1)
    assert clips.shape == (steps.COMPARED_CLIPS, 1, 3, 8, 64, 64)
    found = Runner(network, REFERENCE, 64).outputs(clips)
    for clip, detections in zip(clips, found, strict=True):
        torch.testing.assert_close(detections.boxes, network(clip).boxes, rtol=1e-4, atol=1e-4)


def test_lanes_see_other_frames_than_each_other():
    frames = steps.material(student(), 64, 3)
    assert frames.shape == (steps.COMPARED_IN_LANES, 3, 1, 3, 64, 64)
    assert torch.equal(frames[1, 0], frames[0, 1]) and not torch.equal(frames[0, 0], frames[0, 1])


def test_graphs_and_tf32_are_left_out_on_a_cpu():
    names = [form.name for form in FORMS if form.runs_on(CPU)]
    assert names[:2] == ["float32", "float32, torchvision's RoIAlign"]
    assert names[2:] == (["bf16"] if cpu_computes_bfloat16() else [])


@pytest.mark.slow
def test_forms_are_compared_with_float32():
    rows = steps.measure_forms({"part": "steps", "network": "tiny"}, student(), FORMS, 64, 1, 3)
    assert [row["form"] for row in rows[:2]] == ["float32", "float32, torchvision's RoIAlign"]
    assert (rows[0]["error_boxes"], rows[0]["error_scores"], rows[0]["ratio"]) == (0, 0, 1)
    assert all(row["ms"] > 0 and row["network_ms"] > 0 and row["state_mib"] > 0 for row in rows)
    assert all(row["error_scores"] < 1e-3 for row in rows[1:] if "bf16" not in row["form"])
    page = text.render(rows, FACTS)
    assert "| tiny" in page and "torchvision's RoIAlign" in page


def test_a_form_that_the_device_refuses_gets_a_row_that_says_so(monkeypatch):
    class Refusing(Runner):
        def __init__(self, network, form: Form, *others) -> None:
            if form.name == "float32, torchvision's RoIAlign":
                raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate | 3 GiB")
            super().__init__(network, form, *others)

    monkeypatch.setattr(steps, "Runner", Refusing)
    rows = steps.measure_forms({"part": "steps", "network": "tiny"}, student(), FORMS[:2], 64, 1, 3)
    assert "ms" in rows[0] and rows[1]["failed"] == "OutOfMemoryError: CUDA out of memory."
    assert "OutOfMemoryError: CUDA out of memory." in text.render(rows, FACTS)


@pytest.mark.slow
def test_every_number_of_lanes_is_timed_in_the_same_forms(monkeypatch):
    monkeypatch.setattr(steps, "TINY", (Candidate("dsta", student, 64),))
    rows = list(steps.measure_lanes(SETTINGS))
    forms = [form.name for form in LANE_FORMS if form.runs_on(CPU)]
    assert [(row["lanes"], row["form"]) for row in rows] == [(lanes, form) for lanes in (1, 2) for form in forms]
    assert all(row["frames_per_second"] == pytest.approx(row["lanes"] * 1e3 / row["ms"]) for row in rows)
    assert rows[-1]["state_mib"] == pytest.approx(2 * rows[0]["state_mib"])
    assert "| dsta" in text.render(rows, FACTS)


@pytest.mark.slow
def test_training_steps_are_counted_and_gradients_compared(monkeypatch):
    def configured(name: str, changes):
        if name.startswith("evad"):
            return teacher_of(CONFIG | {"num_frames": 8, "num_classes": 4, "keep_rates": {}})
        sizes = {key: CONFIG[key] for key in CONFIG if key not in ("keep_rates", "enhanced_weight", "key_order")}
        return student_of("dsta", sizes | {"window": 3, "look_ahead": 3, "boxes_from": "next"})

    monkeypatch.setattr(training, "configured", configured)
    monkeypatch.setattr(training, "NUM_CLASSES", {"tiny": 4})
    recipe = training.RECIPES["tiny"]._replace(side=64)
    monkeypatch.setattr(training, "RECIPES", {"tiny": recipe})
    monkeypatch.setattr(training, "STEPS", 2)
    rows = list(training.measure_training(SETTINGS))
    names = [name for name in ("float32", "bf16") if name == "float32" or cpu_computes_bfloat16()]
    assert [row["form"] for row in rows] == 2 * names
    assert all(row["steps_per_second"] > 0 and row["rounds"] == 2 for row in rows)
    assert all(row["clips_per_second"] == pytest.approx(2 * row["steps_per_second"]) for row in rows)
    assert all((row["error_gradients"] == 0) == (row["form"] == "float32") for row in rows)
    assert "distillation (dsta_tiny" in text.render(rows, FACTS)


def test_training_in_float32_is_measured_on_a_cpu_without_bf16(monkeypatch):
    pace = SimpleNamespace(gradients=torch.ones(3), counted=4, seconds=2.0)
    monkeypatch.setattr(training, "computes_bfloat16", lambda device: False)
    monkeypatch.setattr(training, "modules", lambda size, folder: [("teacher", None, 2, (0,))])
    monkeypatch.setattr(training, "fit", lambda *arguments: pace)
    rows = list(training.measure_training(SETTINGS))
    assert [(row["form"], row["steps_per_second"]) for row in rows] == [("float32", 2.0)]


def test_what_a_part_leaves_of_its_time_goes_to_those_after_it():
    names = list(parts.SHARES)
    until = parts.deadlines(names, 100.0, 480.0)
    assert until[names[-1]] == pytest.approx(580)
    assert list(until.values()) == sorted(until.values())
    assert parts.deadlines(["lanes"], 0.0, 480.0) == {"lanes": pytest.approx(480)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("measure", "end"),
    [
        (measured_parts.short, []),
        (measured_parts.dying, [{"part": "steps", "ended": "its process ended with status 3"}]),
        (measured_parts.hanging, [{"part": "steps", "ended": "its time was over"}]),
    ],
)
def test_a_part_that_hangs_or_dies_is_ended_and_keeps_its_rows(measure, end):
    found: list = []

    def clock() -> float:
        """Time is over once the part that hangs has sent its row."""
        return 2000.0 if found and measure is measured_parts.hanging else 0.0

    for row in processes.rows_until(measure, SETTINGS, 1000.0, "steps", clock):
        if row is not None and row["part"] != "machine":
            found.append(row)
    assert found == [{"part": "steps", "network": "tiny", "form": "float32"}, *end]
    if end:
        assert f"This part is not complete: {end[0]['ended']}." in text.render(found, FACTS)


@pytest.mark.slow
def test_a_program_that_is_stopped_leaves_what_it_has_and_no_process(tmp_path):
    arguments = ["--device", "cpu", "--size", "tiny", "--rounds", "3", "--out", str(tmp_path / "gpu.md")]
    process = subprocess.Popen([sys.executable, "-m", "results.benchmarks.gpu", *arguments], stderr=subprocess.PIPE)
    rows, until = tmp_path / "gpu.jsonl", time.monotonic() + 500
    while not (rows.is_file() and '"form"' in rows.read_text()) and time.monotonic() < until:
        time.sleep(0.2)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    kinds = [json.loads(line)["part"] for line in rows.read_text().splitlines()]
    assert kinds[:3] == ["run", "machine", "steps"]
    page = (tmp_path / "gpu.md").read_text()
    assert "dsta.pt" in page and "**This device is no GPU**" in page and " threads." in page
    left = subprocess.run(["ps", "-o", "args=", "-p", ",".join(children)], capture_output=True, text=True).stdout
    assert children and "spawn_main" not in left


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "error: there is no CUDA GPU here to measure; --device cpu --size tiny tries the program\n"),
        (["--device", "cuda:1"], "error: --device: there is no CUDA GPU here, so no cuda:1; take cpu\n"),
        (["--device", "meta"], "error: --device: is meta, but only CUDA GPUs are measured; take cuda or cpu\n"),
    ],
)
def test_a_machine_without_a_gpu_is_refused_in_one_sentence(arguments, reason, capsys, tmp_path):
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--out", str(tmp_path / "gpu.md")])
    assert end.value.code == 1 and capsys.readouterr().err == reason
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("allowed", [True, False])
def test_torch_can_tell_its_precision_after_tf32_was_chosen(allowed):
    """Lightning asks for it on many GPUs; torch refuses where one backend was set apart from the others."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("high")  # as main.py does
        set_tf32(allowed)
        assert torch.get_float32_matmul_precision() == ("high" if allowed else "highest")
        assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == allowed
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("temporal", ["tsa", "dsta"])
@torch.no_grad()
def test_a_captured_step_finds_what_the_step_finds_and_its_lanes_begin_and_hold(temporal):
    network = student(temporal).to("cuda")
    frames = steps.material(network, 64, 3).to("cuda")
    graph = next(form for form in FORMS if form.name == "float32, CUDA graph")
    runners = [Runner(network, form, 64, 3) for form in (REFERENCE, graph)]
    for _ in range(2):  # the second time its streams begin anew
        expected, found = (runner.outputs(frames) for runner in runners)
        for own, other in zip(found, expected, strict=True):
            torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-3)
    for runner in runners:
        runner.holds[1] = True
        runner.run()
    for own, other in zip(*(tree_leaves(runner.state) for runner in runners), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-3)
