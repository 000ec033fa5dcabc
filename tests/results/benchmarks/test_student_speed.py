"""The bench of the students at a size that takes no time: its figures add up and its page renders."""

import re
from importlib.util import find_spec

import pytest
import torch

from lightning_modules.networks.weights.configured import network_of
from lightning_modules.runtimes.sessions import installed
from results.benchmarks import student_forms, student_networks, student_speed
from results.benchmarks.exported import steadiness, student_sizes
from results.benchmarks.page import render
from tests.networks.tiny import CONFIG, PLACES, STUDENT, student_of, teacher_of

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """The networks of the tests in place of ViT-B."""

    def configured(name: str, changes):
        flat = {f"{part}.{argument}": setting for setting, (part, argument) in PLACES.items()}
        changes = {flat.get(place.removeprefix("head."), place): value for place, value in changes.items()}
        changes.pop("backbone.size.num_frames", None)
        if name.startswith("evad"):
            return teacher_of({**CONFIG, "num_frames": 16} | changes)
        return student_of(name.split("_")[0], STUDENT | changes)

    monkeypatch.setattr(student_networks, "configured", configured)
    monkeypatch.setattr(student_networks, "shipped", lambda name: student_of(name, STUDENT).eval())
    monkeypatch.setattr(student_networks, "KEEP_LAYERS", (1, 3))
    monkeypatch.setattr(
        student_speed,
        "EVADS_HEAD",
        {"head.localizer.num_proposals": 4, "head.localizer.num_stages": 2, "head.decoder.depth": 2},
    )
    monkeypatch.setattr(student_speed, "SAVINGS", {"EVAD's head": {}, "num_actors 2": {"num_actors": 2}})


def page(part: str, rows: list) -> str:
    text = render("", student_speed.PARTS, {"side": 64, part: {"machine": "one CPU", "rounds": 2, "rows": rows}})
    return re.sub(" +", " ", text)


@pytest.mark.slow
def test_teachers_and_students_are_compared_with_the_dense_teacher():
    rows = student_speed.measure_speed(CPU, 64, 2)
    by_name = {row["name"]: row for row in rows}
    assert list(by_name) == [
        "evad, dense",
        "evad, keep rate 0.7",
        "tsa, EVAD's head",
        "tsa, num_actors 2",
        "tsa, as configured",
        "dsta, EVAD's head",
        "dsta, as configured",
    ]
    assert by_name["evad, dense"]["faster"] == 1 == by_name["evad, keep rate 0.7"]["faster_than_dropping"]
    assert (
        by_name["tsa, num_actors 2"]["gflops"]
        < by_name["tsa, EVAD's head"]["gflops"]
        < by_name["evad, dense"]["gflops"]
    )
    assert "| evad, dense |" in page("speed", rows)


@pytest.mark.slow
@pytest.mark.skipif("onnx" not in installed() or not find_spec("onnxscript"), reason="pip install '.[export]'")
def test_every_student_is_timed_in_every_form_beside_the_teacher(monkeypatch):
    monkeypatch.setattr(student_sizes, "installed", lambda: ("onnx",))
    rows = student_sizes.measure_sizes(CPU, 64, 2, ("tsa_vit_b",))
    assert [(row["name"], row["form"]) for row in rows] == [
        ("evad_vit_b, dense", "PyTorch, float32"),
        ("tsa_vit_b", "PyTorch, float32"),
        ("tsa_vit_b", "onnxruntime, float32"),
        ("tsa_vit_b", "onnxruntime, int8"),
    ]
    assert rows[0]["faster"] == 1 and all(row["ms"] > 0 and row["faster"] > 0 for row in rows)
    assert rows[3]["megabytes"] < rows[2]["megabytes"]
    assert "| tsa_vit_b | onnxruntime, int8 |" in page("sizes", rows)


@pytest.mark.parametrize("name", student_sizes.STUDENTS)
def test_students_of_every_size_are_narrower_and_stream(name):
    """On the meta device: nothing is computed, but every shape must fit."""
    with torch.device("meta"):
        network = network_of(student_networks.NETWORKS / f"{name}.yaml", 80)
    width = {"b": 768, "s": 384, "ti": 192}[name.rpartition("_")[2]]
    assert network.trunk.blocks[0].norm2.weight.shape == (width,)
    state = network.initial_state(1, (256, 256), device=torch.device("meta"))
    assert all(part.shape[0] == 1 for part in torch.utils._pytree.tree_leaves(state))


@pytest.mark.slow
def test_the_parts_of_a_step_add_up_to_all_of_it():
    rows = student_speed.measure_parts(CPU, 64, 2)
    for temporal in ("tsa", "dsta"):
        cost = {row["part"]: row[f"{temporal}_gflops"] for row in rows}
        assert sum(cost[part] for part in student_speed.PARTS_OF_A_STEP) == pytest.approx(cost["all"])
        assert (cost["LSTM"] > 0) == (temporal == "dsta")
        assert all(cost[part] > 0 for part in ("embedding", "attention", "MLP", "pyramid", "localizer", "decoder"))
        assert all(row[f"{temporal}_ms"] > 0 for row in rows if row["part"] not in ("LSTM", "the rest"))
    assert "| LSTM | 0.00 | 0.0 |" in page("parts", rows)


def test_lanes_count_frames_of_all_streams():
    rows = student_speed.measure_lanes(CPU, 64, 2)
    assert [row["lanes"] for row in rows] == [1, 2, 4, 8] * 2
    assert all(row["frames_per_second"] == pytest.approx(row["lanes"] * 1e3 / row["ms"]) for row in rows)
    assert rows[3]["state_mib"] == pytest.approx(8 * rows[0]["state_mib"])
    assert "| tsa | 8 |" in page("lanes", rows)


@pytest.mark.slow
def test_forms_are_compared_with_the_plain_step(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda network, **_: network)  # which takes a minute
    rows = student_forms.measure_compiled(CPU, 64, 2)
    assert [row["form"] for row in rows if "bf16" not in row["form"]] == ["fp32", "fp32 compiled"] * 2
    assert all((row["error_boxes"], row["error_scores"]) == (0, 0) for row in rows if "bf16" not in row["form"])
    assert [row["ratio"] for row in rows if row["form"] == "fp32"] == [1, 1]
    assert "| tsa | fp32 compiled |" in page("compiled", rows)


def test_errors_are_relative_to_boxes_and_absolute_in_probabilities():
    one = student_forms.Detections(
        torch.zeros(1, 1, 2, 2), torch.tensor([[[[0, 0, 10, 5], [0, 0, 4, 8.0]]]]), torch.zeros(1, 1, 2, 3)
    )
    other = one._replace(boxes=one.boxes + torch.tensor([1.0, 0, 0, 0]))
    assert student_forms.largest_errors([other], [one]) == (pytest.approx(1 / 8), 0)
    other = one._replace(person_logits=one.person_logits + torch.tensor([0, 100.0]))
    assert student_forms.largest_errors([one, other], [one, one]) == (0, pytest.approx(0.5))


def test_an_old_stream_is_compared_with_a_young_one(monkeypatch):
    monkeypatch.setattr(steadiness, "installed", lambda: ())
    rows = steadiness.measure_steadiness(CPU, 64, 1, frames=20)
    assert [(row["student"], row["form"]) for row in rows] == [
        ("tsa", "PyTorch, float32"),
        ("dsta", "PyTorch, float32"),
    ]
    assert all(row["state_bytes"][0] == row["state_bytes"][1] > 0 for row in rows)
    assert all(row["ratio"] == row["old_ms"] / row["young_ms"] for row in rows)
    text = " ".join(page("steady", rows).split())
    assert "of frames 1 to 3 of one stream" in text
    assert "State and memory of the process after 1 and 18 frames of the old stream" in text  # of 20, 2 are timed


@pytest.mark.slow
@pytest.mark.skipif("onnx" not in installed() or not find_spec("onnxscript"), reason="pip install '.[export]'")
def test_exported_streams_grow_old_beside_it():
    rows = steadiness.measure_steadiness(CPU, 64, 1, frames=20)
    forms = ["PyTorch, float32", "onnxruntime, float32", "onnxruntime, int8"]
    assert [(row["student"], row["form"]) for row in rows] == [
        (name, form) for name in ("tsa", "dsta") for form in forms
    ]
    assert all(row["state_bytes"][0] == row["state_bytes"][1] > 0 for row in rows)
    assert "| onnxruntime, int8 |" in page("steady", rows)
