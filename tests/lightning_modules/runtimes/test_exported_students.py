"""A student's exported file finds what its weights find, in every runtime, and is enough by itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.errors import UserError
from lightning_modules.command_line.pretrained import with_card
from lightning_modules.commands.export_graph import export_graph
from lightning_modules.commands.export_parity import moving_blobs, run_torch
from lightning_modules.evaluation.tracked import TrackedFrame
from lightning_modules.exported_detection import ExportedDetectionModule
from lightning_modules.networks.detection.export_graphs import StepGraph
from lightning_modules.networks.layers.pixels import normalise_frames
from lightning_modules.networks.streaming import state_bytes
from lightning_modules.networks.weights.configured import build_network
from lightning_modules.networks.weights.loading import save_weights
from lightning_modules.networks.weights.safetensors_file import CARD
from lightning_modules.runtimes import opening, sessions
from lightning_modules.runtimes.detector import ExportedDetector
from lightning_modules.runtimes.exported_file import ExportedStep, read_exported_step
from lightning_modules.runtimes.sessions import RUNTIMES, installed
from lightning_modules.session import StreamSession
from lightning_modules.stream_detection import StreamDetectionModule
from main import main
from tests.datamodules.miniature import NumberedVideos
from tests.datamodules.written_videos import write_video
from tests.lightning_modules import tiny
from tests.networks.tiny import randomise
from tests.networks.weights.small import small_card, small_config

SIZE = (64, 72)
"""Of the frames: the networks see them padded to 64 x 96."""
EACH_RUNTIME = [
    pytest.param(runtime, marks=pytest.mark.skipif(runtime not in installed(), reason=f"{runtime} is not installed"))
    for runtime in RUNTIMES
]
pytestmark = pytest.mark.slow  # their fixture exports a student
needs_onnx = pytest.mark.skipif(
    any(sessions.importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="needs onnx, onnxscript and onnxruntime: pip install '.[export]'",
)


def small_student():
    torch.manual_seed(0)
    network = randomise(build_network(small_config())).eval()
    with torch.no_grad():  # so that the tracker takes everybody for a person
        for stage in network.head.localizer.stages:
            stage.class_logits.bias.copy_(torch.tensor([2.0, -2.0]))
    return network, small_card(small_config())


@pytest.fixture(scope="module")
def student():
    return small_student()


@pytest.fixture(scope="module")
def folder(student, tmp_path_factory) -> Path:
    """``student.onnx`` and the weights of the same network, ``student.pt``."""
    network, card = student
    place = tmp_path_factory.mktemp("exported")
    graph = StepGraph(network, SIZE, "person_x_action")
    facts = {CARD: card.to_dict()}
    export_graph(graph, place / "student", moving_blobs(6, SIZE), card.classes, steps=3, facts=facts)
    (place / "student.npz").unlink()  # what lies beside the file is for programs that cannot read its metadata
    halves = {key: value.half().to(value.dtype) for key, value in network.state_dict().items()}
    save_weights(halves, place / "student.pt", card)
    return place


def assert_same(found: list[TrackedFrame], expected: list[TrackedFrame]) -> None:
    assert [frame[:4] for frame in found] == [frame[:4] for frame in expected]
    assert sum(len(frame.people) for frame in expected) > len(expected)
    for one, other in zip(found, expected, strict=True):
        assert [person.track for person in one.people] == [person.track for person in other.people]
        for ours, theirs in zip(one.people, other.people, strict=True):
            assert ours.box == pytest.approx(theirs.box, abs=2e-2)
            assert ours.person_score == pytest.approx(theirs.person_score, abs=1e-3)
            assert ours.actions == pytest.approx(theirs.actions, abs=1e-3)


@pytest.mark.slow
@needs_onnx
@pytest.mark.parametrize("runtime", EACH_RUNTIME)
def test_every_runtime_finds_what_torch_finds(folder, student, runtime):
    """Over a stream that ends: the state goes on from frame to frame, and late predictions come out."""
    frames = list(moving_blobs(14, SIZE, seed=4))
    session = StreamSession.from_pretrained(folder / "student.onnx", runtime=runtime)
    assert (session.class_names, session.look_ahead) == (("sit", "stand", "walk"), 3)
    assert_same(list(session.predict(frames)), list(StreamSession(*student).predict(frames)))


@needs_onnx
@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
def test_predict_takes_an_exported_file_in_the_place_of_weights(folder, student, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    write_video("film.mp4", moving_blobs(12, SIZE, seed=6), 16)
    main(["predict", "--weights", str(folder / "student.onnx"), "--source=film.mp4", "--runtime=onnx"])
    assert "student.onnx (float32) runs in onnx: as asked for" in caplog.messages
    written = [json.loads(line) for line in Path("runs/predictions/film.jsonl").read_text().splitlines()]
    expected = list(StreamSession(*student).predict(tmp_path / "film.mp4"))
    assert [line["frame"] for line in written] == [frame.frame for frame in expected] == list(range(0, 12, 2))
    for line, frame in zip(written, expected, strict=True):
        people = [person for person in frame.people if person.person_score >= 0.5]
        assert len(line["detections"]) == len(people) > 0
        for found, person in zip(line["detections"], people, strict=True):
            assert found["box"] == pytest.approx(person.box, abs=0.1)
            assert found["person"] == pytest.approx(person.person_score, abs=1e-3)


@pytest.mark.parametrize("lanes", [1, 3])
def test_an_exported_step_stands_in_for_the_network_on_any_lanes_and_chunks(student, lanes):
    network, _ = student
    graph = StepGraph(network, SIZE, "person_x_action")
    start = {name: value.numpy() for name, value in graph.initial_state(1).items()}
    exported = ExportedDetector(run_torch(graph), 3, SIZE, "person_x_action", start, 3, batch_size=1)
    shown = np.stack([moving_blobs(5, SIZE, seed) for seed in range(lanes)])
    pixels = torch.zeros(lanes, 5, 3, 64, 96, dtype=torch.uint8)
    pixels[..., : SIZE[1]] = torch.from_numpy(shown).movedim(-1, -3)
    sizes = torch.tensor([SIZE] * lanes)
    frames = normalise_frames(pixels, sizes)
    with torch.no_grad():
        expected, _ = network(frames, network.initial_state(lanes, (64, 96)), sizes)
        state, found = exported.initial_state(lanes), []
        for chunk in frames.split((2, 3), dim=1):
            detections, state = exported(chunk, state, sizes)
            found.append(detections)
    persons, boxes, actions = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
    limit = torch.tensor([SIZE[1], SIZE[0]] * 2) - 1
    torch.testing.assert_close(boxes, expected.boxes.clamp(min=0).minimum(limit), atol=2e-3, rtol=0)
    torch.testing.assert_close(persons.softmax(-1), expected.person_logits.softmax(-1), atol=1e-5, rtol=0)
    certain = expected.person_logits.softmax(-1)[..., :1] > 1e-3
    difference = (actions.sigmoid() - expected.action_logits.sigmoid()).abs() * certain
    assert float(difference.max()) < 1e-4 and bool(certain.any())


def test_a_broken_number_stays_one(student):
    network, _ = student
    graph = StepGraph(network, SIZE, "action")
    start = {name: value.numpy() for name, value in graph.initial_state(1).items()}
    whole = run_torch(graph)

    def broken(inputs):
        outputs = whole(inputs)
        return outputs | {"person_scores": outputs["person_scores"] * np.nan}

    session = StreamSession(ExportedDetector(broken, 3, SIZE, "action", start, 3), small_card(small_config()))
    with pytest.raises(ValueError, match="are NaN"):
        list(session.predict(list(moving_blobs(10, SIZE))))


@needs_onnx
def test_frames_of_another_size_are_refused_with_the_way_out(folder):
    session = StreamSession.from_pretrained(folder / "student.onnx", runtime="onnx")
    with pytest.raises(UserError, match=r"frames have 64x64 pixels, the exported network takes 72x64; .*\[64,64\]"):
        list(session.predict(list(moving_blobs(10, (64, 64)))))


@needs_onnx
@pytest.mark.parametrize("fastest", ["onnx", "openvino"])
def test_the_fastest_runtime_is_chosen_and_said_with_the_times(folder, fastest, monkeypatch):
    whole = sessions.open_session(folder / "student.onnx", "onnx")

    def opened(path, runtime):
        def run(inputs):
            clock[0] += 0.002 if runtime == fastest else 0.005
            return whole(inputs)

        return run

    clock = [0.0]
    monkeypatch.setattr(opening, "installed", lambda: RUNTIMES)
    monkeypatch.setattr(opening, "open_session", opened)
    monkeypatch.setattr(opening.time, "perf_counter", lambda: clock[0])
    said = opening.ExportedStudent(str(folder / "student.onnx")).choice
    assert said.startswith(f"student.onnx (float32) runs in {fastest}: ")
    assert f"2.0 ms a step in {fastest}" in said and said.count("5.0 ms a step in") == 1


@needs_onnx
def test_the_only_runtime_is_taken_without_a_measurement(folder, monkeypatch):
    monkeypatch.setattr(opening, "installed", lambda: ("onnx",))
    monkeypatch.setattr(opening.time, "perf_counter", lambda: pytest.fail("nothing to compare"))
    student = opening.ExportedStudent(str(folder / "student.onnx"))
    assert student.choice.endswith("runs in onnx: no other is installed")


@needs_onnx
def test_a_runtime_that_cannot_read_the_file_is_passed_over_if_another_can(folder, monkeypatch):
    def opened(path, runtime):
        if runtime == "openvino" or refuses_all:
            raise UserError(f"{runtime} cannot read it", where=path)
        return sessions.open_session(path, runtime)

    refuses_all = False
    monkeypatch.setattr(opening, "installed", lambda: RUNTIMES)
    monkeypatch.setattr(opening, "open_session", opened)
    student = opening.ExportedStudent(str(folder / "student.onnx"))
    assert student.choice.endswith("runs in onnx: no other that is installed can read it")
    refuses_all = True
    with pytest.raises(UserError, match="onnx cannot read it"):
        opening.ExportedStudent(str(folder / "student.onnx"))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_missing_runtime_is_named_with_what_brings_it(runtime, monkeypatch, tmp_path):
    monkeypatch.setattr(sessions.importlib.util, "find_spec", lambda name: None)
    package, extra = sessions.PACKAGES[runtime], sessions.EXTRAS[runtime]
    with pytest.raises(UserError, match=rf"runtime {runtime} needs {package}; pip install 'onlooker\[{extra}\]'"):
        StreamSession.from_pretrained(tmp_path / "student.onnx", runtime=runtime)


@needs_onnx
@pytest.mark.parametrize(
    ("name", "runtime", "message"),
    [
        ("student.onnx", "torch", "does not run in torch"),
        ("student.pt", "onnx", "run in torch, not in onnx; write them with python main.py export"),
        ("student.onnx", "tensorrt", "must be one of torch, onnx, openvino"),
        ("absent.onnx", "onnx", "absent.onnx: no such file"),
        ("torn.onnx", "onnx", "torn.onnx: is damaged"),
        ("empty.onnx", "onnx", "empty.onnx: holds no exported detector"),
        ("cardless.onnx", "onnx", "cardless.onnx: has no card inside; export it again"),
        ("clip.onnx", "onnx", "clip.onnx: holds a teacher's clip"),
        ("stateless.onnx", "onnx", "stateless.onnx: its metadata cannot be read"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line_by_command_and_session(folder, name, runtime, message):
    import onnx

    whole = (folder / "student.onnx").read_bytes()
    (folder / "torn.onnx").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.onnx").write_bytes(b"")
    for file, changes in {
        "cardless": {CARD: None},
        "clip": {"kind": "clip"},
        "stateless": {"initial_state_npz": "AAAA"},
    }.items():
        model = onnx.load(folder / "student.onnx")
        about = {entry.key: entry.value for entry in model.metadata_props} | changes
        onnx.helper.set_model_props(model, {key: value for key, value in about.items() if value is not None})
        onnx.save(model, folder / f"{file}.onnx")
    with pytest.raises(UserError, match=message):
        with_card(["predict", "--weights", str(folder / name), "--source=film.mp4", f"--runtime={runtime}"])
    if runtime != "tensorrt":
        with pytest.raises(UserError, match=message):
            StreamSession.from_pretrained(folder / name, runtime=runtime)


@needs_onnx
def test_a_file_whose_card_says_another_delay_than_its_graph_has_is_refused(folder, tmp_path):
    import onnx

    model = onnx.load(folder / "student.onnx")
    about = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, about | {CARD: json.dumps(json.loads(about[CARD]) | {"look_ahead": 2})})
    onnx.save(model, tmp_path / "mixed.onnx")
    with pytest.raises(UserError, match="its card says look_ahead=2, its graph has 3; export it again"):
        StreamSession.from_pretrained(tmp_path / "mixed.onnx")


@needs_onnx
def test_an_exported_file_says_all_that_predict_needs(folder):
    found = with_card(["predict", "--weights", str(folder / "student.onnx"), "--source=film.mp4", "--runtime=onnx"])
    given = {"file": str(folder / "student.onnx"), "runtime": "onnx"}
    network = {"class_path": "ExportedStudent", "init_args": given}
    assert found[2:4] == ["--model=ExportedDetectionModule", f"--model.init_args.network={json.dumps(network)}"]
    assert found[4:] == [
        '--data.init_args.classes=["sit", "stand", "walk"]',
        "--data.init_args.frame_stride=2",
        "--data.init_args.short_side=64",
        "--data.init_args.frame_rate=16.0",
        "--data.init_args.source=film.mp4",
    ]
    step = read_exported_step(folder / "student.onnx")
    assert (step.image_size, step.batch_size, step.precision) == (SIZE, 1, "float32")
    assert step.card == replace(small_card(small_config()), network=step.card.network)


@needs_onnx
def test_an_exported_file_is_written_nowhere_as_weights(folder, tmp_path):
    session = StreamSession.from_pretrained(folder / "student.onnx", runtime="onnx")
    for call in (session.save_pretrained, session.push_to_hub):
        with pytest.raises(UserError, match="an exported file has no weights"):
            call(str(tmp_path / "x"))
    assert not list(tmp_path.iterdir())


def test_weights_run_in_torch_as_before(folder, student):
    frames = list(moving_blobs(10, SIZE))
    found = list(StreamSession.from_pretrained(folder / "student.pt", runtime="torch").predict(frames))
    assert [frame[:4] for frame in found] == [frame[:4] for frame in StreamSession(*student).predict(frames)]
    assert all(frame.people for frame in found)


def test_an_exported_student_is_validated_as_its_network_is_and_never_trained(tmp_path, monkeypatch):
    """PyTorch's own graph in the place of a file."""
    source = NumberedVideos(tmp_path, lengths=(40, 24, 33, 9), training=2, sizes=((96, 128),))
    network = tiny.student("tsa", look_ahead=1)
    tiny.place_proposals(network)
    data = tiny.streams(source, tmp_path / "cache")
    expected = tiny.trainer(tmp_path).validate(StreamDetectionModule(network), data, verbose=False)
    graph = StepGraph(network, (64, 85), "person_x_action")
    card = replace(small_card(small_config()), classes=tuple(data.class_names), look_ahead=1)
    state = {name: value.numpy() for name, value in graph.initial_state(1).items()}
    step = ExportedStep(card, (64, 85), 1, state, "person_x_action", "float32")
    monkeypatch.setattr(opening, "read_exported_step", lambda path: step)
    monkeypatch.setattr(opening, "open_session", lambda path, runtime: run_torch(graph))
    module = ExportedDetectionModule(opening.ExportedStudent("student.onnx", "onnx", num_classes=2))
    with pytest.raises(UserError, match=r"data.lanes: is 3, .* one stream at a time; set it to 1"):
        tiny.trainer(tmp_path).validate(module, data, verbose=False)
    data = tiny.streams(source, tmp_path / "cache", lanes=1)
    assert tiny.trainer(tmp_path).validate(module, data, verbose=False) == [pytest.approx(expected[0], abs=1e-6)]
    measured = module.benchmark()
    for _ in range(2):  # the state goes on
        measured.step()
    assert (measured.unit, measured.delay) == ("frame", 1)
    assert state_bytes(measured.state) == state_bytes(graph.initial_state(1)) > 0
    for call in ("fit", "test"):
        with pytest.raises(UserError, match=f"an exported file can predict and validate, not {call}"):
            getattr(tiny.trainer(tmp_path), call)(module, data)
    with pytest.raises(UserError, match="has 2 classes but the data has 7"):
        opening.ExportedStudent("student.onnx", "onnx", num_classes=7)
