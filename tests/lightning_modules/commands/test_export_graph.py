"""Exported steps and clips compute what the networks do, under names that a program without this repository can use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from torch.export import ExportedProgram

from datamodules.errors import UserError
from lightning_modules.clip_detection import ClipDetectionModule
from lightning_modules.commands import export_graph as export
from lightning_modules.commands import onnx_file
from lightning_modules.commands.export_graph import Exported, export_graph, graph_of
from lightning_modules.commands.export_parity import Run, measure_parity, moving_blobs, require_parity, run_torch
from lightning_modules.networks.detection.export_graphs import ExportGraph
from lightning_modules.networks.detection.outputs import Detections, decode_detections
from lightning_modules.networks.students.detector import StreamingDetector
from lightning_modules.stream_detection import StreamDetectionModule
from main import main
from tests.lightning_modules import tiny
from tests.networks.tiny import randomise

ROOT = Path(__file__).resolve().parents[3]
SIZE = (48, 60)
"""Of the frames; the networks see them padded to 64 x 64."""
NAMES = ("walk", "sit")
ALL_OPTIONS = {"num_proposals": 6, "num_actors": 3, "decoder_context": "read"}
SHALLOW = {"num_stages": 1, "decoder_depth": 1}
"""The exporter takes its time for every operator."""
needs_onnx = pytest.mark.skipif(
    any(onnx_file.importlib.util.find_spec(name) is None for name in onnx_file.ONNX_PACKAGES),
    reason="needs onnx, onnxscript and onnxruntime: pip install '.[export]'",
)


def exported(module: L.LightningModule, folder: Path, format: export.Format, batch_size: int | None) -> Exported:
    graph = graph_of(module, SIZE, num_frames=None)
    frames = moving_blobs(12, SIZE)
    return export_graph(graph, folder / "model", frames, NAMES, format, batch_size, steps=4, facts={"frame_stride": 2})


def student(temporal: str, **changes) -> StreamDetectionModule:
    """With weights drawn so that every part matters, the refinement of boxes and the gates too."""
    return StreamDetectionModule(randomise(tiny.student(temporal, **{**SHALLOW, **changes})))


def teacher() -> ClipDetectionModule:
    return ClipDetectionModule(randomise(tiny.teacher(**SHALLOW)))


@pytest.fixture(scope="module")
def dsta(tmp_path_factory):
    """With every option that changes what is in the state."""
    module = student("dsta", **ALL_OPTIONS)
    return module.network, exported(module, tmp_path_factory.mktemp("dsta"), "onnx", batch_size=1)


@pytest.fixture(scope="module")
def tsa_of_any_batch(tmp_path_factory):
    module = student("tsa")
    return module.network, exported(module, tmp_path_factory.mktemp("tsa"), "onnx", batch_size=None)


@pytest.fixture(scope="module")
def teacher_of_any_batch(tmp_path_factory):
    module = teacher()
    return module.network, exported(module, tmp_path_factory.mktemp("evad"), "onnx", batch_size=None)


def session(path: Path):
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def stream_through(path: Path, frames: np.ndarray, batch_size: int) -> list[list[np.ndarray]]:
    """Boxes, person and action scores of each step as a stranger computes them: with onnxruntime and numpy.

    ``frames`` (N, B, H, W, 3).
    """
    runtime = session(path)
    names = [output.name for output in runtime.get_outputs()]
    start = dict(np.load(path.with_suffix(".npz")))
    state = {name: np.repeat(value, batch_size, axis=0) for name, value in start.items()}
    found = []
    for batch in frames:
        outputs = dict(zip(names, runtime.run(None, {"frames": batch, **state}), strict=True))
        state = {name: outputs[f"next_{name}"] for name in state}
        found.append([outputs[name] for name in ("boxes", "person_scores", "action_scores")])
    return found


def padded(frames: np.ndarray) -> torch.Tensor:
    """(..., H, W, 3) uint8 -> (..., 3, 64, 64), normalised by hand."""
    normalised = (torch.from_numpy(frames).float() / 255 - 0.45) / 0.225
    canvas = torch.zeros(*frames.shape[:-3], 3, 64, 64)
    canvas[..., : SIZE[0], : SIZE[1]] = normalised.movedim(-1, -3)
    return canvas


def decoded(detections: Detections, sizes: torch.Tensor) -> list[torch.Tensor]:
    """Return the predictions for every proposal: boxes, person and action scores, (B, Q, ...)."""
    scored = decode_detections(detections, sizes, sizes, person_threshold=0.0, score="person_x_action")
    parts = ("boxes", "person_scores", "scores")
    return [torch.stack([getattr(entry, part) for entry in scored]) for part in parts]


def assert_close(found: list[np.ndarray], expected: list[torch.Tensor]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=1e-3)


@torch.no_grad()
def expected_of_stream(network: StreamingDetector, frames: np.ndarray) -> list[list[torch.Tensor]]:
    sizes = torch.tensor([SIZE]).expand(frames.shape[1], 2)
    state = network.initial_state(frames.shape[1], (64, 64))
    found = []
    for batch in frames:
        detections, state = network(padded(batch)[:, None], state, sizes)
        found.append(decoded(Detections(*(part[:, 0] for part in detections)), sizes))
    return found


@pytest.mark.slow
@needs_onnx
def test_a_step_run_by_onnxruntime_detects_what_the_network_does(dsta):
    network, model = dsta
    frames = moving_blobs(20, SIZE, seed=3)[:, None]
    for found, expected in zip(stream_through(model.path, frames, 1), expected_of_stream(network, frames), strict=True):
        assert_close(found, expected)


@pytest.mark.slow
@needs_onnx
def test_the_state_changes_what_a_step_detects(dsta):
    _, model = dsta
    frames = np.repeat(moving_blobs(1, SIZE)[:, None], 3, axis=0)
    first, *_, last = stream_through(model.path, frames, 1)
    assert np.abs(first[2] - last[2]).max() > 1e-3


@pytest.mark.slow
@needs_onnx
def test_inputs_and_outputs_are_named_after_the_state(dsta):
    _, model = dsta
    state = ["trunk.embedding.past", "trunk.embedding.filled"]
    state += [f"trunk.blocks.{block}.{part}" for block in (0, 1) for part in ("hidden", "cell")]
    state += ["memory.tokens", "memory.places", "memory.filled"]
    runtime = session(model.path)
    inputs = {given.name: (given.type, given.shape) for given in runtime.get_inputs()}
    assert list(inputs) == ["frames", *(f"state.{name}" for name in state)]
    assert inputs["frames"] == ("tensor(uint8)", [1, *SIZE, 3])
    assert inputs["state.memory.places"] == ("tensor(int64)", [1, 3, 8])
    outputs = {given.name: given.shape for given in runtime.get_outputs()}
    assert list(outputs) == [
        "boxes",
        "person_scores",
        "action_scores",
        *(f"next_state.{name}" for name in state),
    ]
    assert (outputs["boxes"], outputs["person_scores"], outputs["action_scores"]) == ([1, 3, 4], [1, 3], [1, 3, 2])


@pytest.mark.slow
@needs_onnx
def test_the_initial_state_lies_beside_the_model(dsta):
    network, model = dsta
    state = network.initial_state(1, (64, 64))
    with np.load(model.state_path) as stored:
        assert set(stored) == {given.name for given in session(model.path).get_inputs()} - {"frames"}
        for name, value in (
            ("state.trunk.embedding.past", state.trunk.embedding.past),
            ("state.trunk.blocks.1.cell", state.trunk.blocks[1].cell),
            ("state.memory.filled", state.memory.filled),
        ):
            np.testing.assert_array_equal(stored[name], value.numpy())


@pytest.mark.slow
@needs_onnx
def test_an_onnx_file_says_what_it_is(dsta):
    _, model = dsta
    about = session(model.path).get_modelmeta().custom_metadata_map
    assert json.loads(about["class_names"]) == list(NAMES)
    assert json.loads(about["image_size"]) == list(SIZE)
    assert json.loads(about["normalisation"]) == {"inside": True, "mean": 0.45, "std": 0.225, "padded_to": [64, 64]}
    assert (about["kind"], about["precision"], about["opset"]) == ("step", "float32", "18")
    assert onnx_file.opset_of(model.path) == 18
    assert (about["torch"], about["score"]) == (torch.__version__, "person_x_action")
    parity = json.loads(about["parity"])
    assert (parity["steps"], parity["tolerance"]) == (4, {"boxes": 1e-4, "scores": 1e-3})
    assert 0 < parity["boxes_pixels"] < 1e-3
    assert parity["boxes_pixels"] / 60 <= parity["boxes"] <= parity["boxes_pixels"] / 48
    assert parity["person_scores"] < 1e-3
    assert parity["action_scores"] < 1e-3


@needs_onnx
@pytest.mark.slow
def test_streams_of_any_number_are_detected_as_each_alone(tsa_of_any_batch):
    network, model = tsa_of_any_batch
    runtime = session(model.path)
    assert {given.shape[0] for given in [*runtime.get_inputs(), *runtime.get_outputs()]} == {"batch"}
    frames = moving_blobs(9, SIZE, seed=5)
    three = np.stack([frames[0:5], frames[2:7], frames[4:9]], axis=1)
    together = stream_through(model.path, three, 3)
    for found, expected in zip(together, expected_of_stream(network, three), strict=True):
        assert_close(found, expected)
    alone = stream_through(model.path, three[:, 1:2], 1)
    for found, one in zip(together, alone, strict=True):
        assert_close([part[1:2] for part in found], [torch.from_numpy(part) for part in one])


@needs_onnx
@pytest.mark.slow
def test_a_clip_run_by_onnxruntime_detects_what_the_teacher_does(teacher_of_any_batch):
    network, model = teacher_of_any_batch
    assert model.state_path is None
    assert (model.metadata["kind"], model.metadata["num_frames"], model.metadata["keyframe"]) == ("clip", 4, 2)
    runtime = session(model.path)
    assert [given.name for given in runtime.get_inputs()] == ["frames"]
    assert [given.name for given in runtime.get_outputs()] == ["boxes", "person_scores", "action_scores"]
    frames = moving_blobs(10, SIZE, seed=7)
    for clips in (np.stack([frames[:4], frames[3:7], frames[6:]]), frames[None, 2:6]):
        sizes = torch.tensor([SIZE]).expand(len(clips), 2)
        with torch.no_grad():
            expected = decoded(network(padded(clips).transpose(1, 2), sizes), sizes)
        assert_close(runtime.run(None, {"frames": clips}), expected)


STRANGER = """
import json, sys
import numpy as np
import torch

program = torch.export.load("model.pt2").module()
about = json.load(open("model.json"))
state = {name: torch.from_numpy(value) for name, value in np.load("model.npz").items()}
found = []
for frame in np.load("frames.npy"):
    detections, state = program(torch.from_numpy(frame)[None], state)
    found.append(detections["action_scores"].detach().numpy())
np.save("found.npy", np.stack(found))
ours = {"lightning_modules", "datamodules", "torchvision", "timm", "lightning"} & set(sys.modules)
assert not ours, ours
assert about["class_names"] == ["walk", "sit"], about
"""


@pytest.mark.slow
def test_a_pt2_runs_in_a_process_that_knows_torch_alone(tmp_path):
    module = student("dsta", **ALL_OPTIONS)
    exported(module, tmp_path, "torch_export", batch_size=1)
    frames = moving_blobs(5, SIZE, seed=2)
    np.save(tmp_path / "frames.npy", frames)
    run_as_stranger(STRANGER, tmp_path)
    expected = [scores for _, _, scores in expected_of_stream(module.network, frames[:, None])]
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), torch.stack(expected).numpy(), rtol=0, atol=1e-3)


def run_as_stranger(script: str, folder: Path, *arguments: str) -> str:
    """Run a script from another folder; what it prints."""
    ended = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def example() -> str:
    """The example's program; everybody is printed, since random weights may take nobody for a person."""
    program = (ROOT / "examples" / "run_exported_student.py").read_text()
    assert "person >= 0.5" in program
    return program.replace("person >= 0.5", "person >= 0")


def sampled(video: Path) -> tuple[list[np.ndarray], list[float]]:
    """Every second frame in the size of the model, and when it is shown."""
    import av

    with av.open(str(video)) as container:
        pictures = list(container.decode(video=0))[::2]
    shape = {"width": SIZE[1], "height": SIZE[0], "interpolation": "AREA"}
    return [picture.to_ndarray(format="rgb24", **shape) for picture in pictures], [picture.time for picture in pictures]


EACH = """
import runpy, sys

for model, video, output in zip(*[iter(sys.argv[1:])] * 3):
    sys.argv = ["example.py", model, video]
    with open(output, "w") as sys.stdout:
        runpy.run_path("example.py", run_name="__main__")
"""


@pytest.mark.slow
@needs_onnx
def test_the_example_prints_every_sampled_frame_of_a_video(dsta, tmp_path):
    """Also the last ones, which are known only after the end, and those of a film shorter than the look-ahead."""
    _, model = dsta
    (tmp_path / "example.py").write_text(example())
    for look_ahead in (0, 1, 2, 5):
        write_late(model, look_ahead, tmp_path / f"late_{look_ahead}.onnx")
    for num_frames in (1, 3, 6):
        write_video(tmp_path / f"{num_frames}.mp4", moving_blobs(num_frames, (96, 120)))
    cases = [(look_ahead, num_frames) for look_ahead in (0, 1, 2, 5) for num_frames in (1, 3, 6)]
    files = [f"late_{late}.onnx {length}.mp4 said_{late}_{length}" for late, length in cases]
    run_as_stranger(EACH, tmp_path, *" ".join(files).split())

    for look_ahead, num_frames in cases:
        frames, times = sampled(tmp_path / f"{num_frames}.mp4")
        steps = stream_through(model.path, np.stack([*frames, *[frames[-1]] * look_ahead])[:, None], 1)
        expected = [
            f"{time:.2f} s {(2 * box).round()} {person:.2f} {NAMES[scores.argmax()]} {scores.max()!s}"
            for time, found in zip(times, steps[look_ahead:], strict=True)
            for box, person, scores in zip(*(part[0] for part in found), strict=True)
        ]
        said = (tmp_path / f"said_{look_ahead}_{num_frames}").read_text().splitlines()
        assert said == expected and len(times) == -(-num_frames // 2)


def write_late(model: Exported, look_ahead: int, path: Path) -> None:
    """Write the model with another look-ahead: what comes out is taken for what was said of an earlier frame."""
    import onnx

    late = onnx.load(model.path)
    (entry,) = (entry for entry in late.metadata_props if entry.key == "look_ahead")
    assert entry.value == "0"
    entry.value = str(look_ahead)
    onnx.save(late, path)
    path.with_suffix(".npz").write_bytes(model.state_path.read_bytes())


def write_video(path: Path, frames: np.ndarray) -> None:
    import av

    with av.open(path, "w") as container:
        stream = container.add_stream("h264", rate=10)
        stream.height, stream.width = frames.shape[1:3]
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())


@pytest.mark.slow
def test_a_teachers_pt2_computes_its_clip(tmp_path):
    module = teacher()
    model = exported(module, tmp_path, "torch_export", batch_size=None)
    clips = np.stack([moving_blobs(4, SIZE, seed) for seed in (1, 2, 3)])
    sizes = torch.tensor([SIZE]).expand(3, 2)
    with torch.no_grad():
        found = torch.export.load(model.path).module()(torch.from_numpy(clips))
        expected = decoded(module.network(padded(clips).transpose(1, 2), sizes), sizes)
    assert list(found) == ["boxes", "person_scores", "action_scores"]
    assert_close([part.numpy() for part in found.values()], expected)


SMALLEST = {"depth": 1, "pyramid_layers": [0, 0, 0, 0], "window": 0}


@pytest.fixture(scope="module")
def captured() -> tuple[ExportGraph, ExportedProgram]:
    """The smallest student's step and what is captured of it: that takes long and is the same for all formats."""
    graph = graph_of(student("tsa", **SMALLEST), SIZE, num_frames=None)
    return graph, export._capture(graph, 1, dynamic=False)


@pytest.fixture
def smallest(captured, monkeypatch) -> ExportGraph:
    """The smallest student's step, which is exported without being captured anew."""
    graph, program = captured

    def capture(of: ExportGraph, lanes: int, dynamic: bool) -> ExportedProgram:
        assert of is graph and lanes == 1 and not dynamic
        return program

    monkeypatch.setattr(export, "_capture", capture)
    return graph


def off_by(errors: dict[str, np.ndarray], run: Run) -> Run:
    """Add these to the outputs of a graph."""
    return lambda inputs: {
        name: value + errors[name] if name in errors else value for name, value in run(inputs).items()
    }


@pytest.mark.slow
def test_a_graph_that_detects_something_else_is_not_written(smallest, monkeypatch, tmp_path):
    load = export.load
    monkeypatch.setattr(export, "load", lambda *args: off_by({"action_scores": np.float32(0.01)}, load(*args)))
    with pytest.raises(UserError, match=r"by up to .* in boxes .*1.0e-02 in action scores .*; nothing was written"):
        export_graph(smallest, tmp_path / "model", moving_blobs(12, SIZE), NAMES, "torch_export", steps=4)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("output", "side", "error", "allowed"),
    [
        ("boxes", 0, 0.0055, True),
        ("boxes", 0, 0.0065, False),
        ("boxes", 1, 0.0045, True),
        ("boxes", 1, -0.0055, False),
        ("boxes", 2, -0.0055, True),
        ("boxes", 3, float("nan"), False),
        ("person_scores", 0, 9e-4, True),
        ("person_scores", 0, 11e-4, False),
        ("action_scores", 1, -9e-4, True),
        ("action_scores", 1, float("nan"), False),
    ],
)
def test_boxes_are_compared_by_the_frames_side_and_scores_for_themselves(output, side, error, allowed):
    """A ten-thousandth of a frame 60 wide and 48 high: 0.006 pixels of x, 0.0048 of y."""
    graph = graph_of(student("tsa", **SMALLEST), SIZE, num_frames=None)
    run = run_torch(graph)
    shape = {"boxes": 4, "person_scores": 4, "action_scores": 2}[output]
    errors = {output: np.where(np.arange(shape) == side, np.float32(error), np.float32(0))}
    parity = measure_parity(graph, off_by(errors, run), moving_blobs(3, SIZE), lanes=1, steps=2)
    if output == "boxes":
        assert parity.boxes == pytest.approx(abs(error) / SIZE[1 - side % 2], rel=0.01, nan_ok=True)
        assert parity.boxes_pixels == pytest.approx(abs(error), rel=0.01, nan_ok=True)
    else:
        assert getattr(parity, output) == pytest.approx(abs(error), rel=0.01, nan_ok=True)
    if allowed:
        require_parity(parity, box_tolerance=1e-4, score_tolerance=1e-3, steps=2)
    else:
        with pytest.raises(UserError, match=r"box_tolerance=0\.0001 or score_tolerance=0\.001"):
            require_parity(parity, box_tolerance=1e-4, score_tolerance=1e-3, steps=2)


@pytest.mark.parametrize("look_ahead", [0, 3])
def test_as_many_frames_are_compared_as_are_asked_for_whatever_the_look_ahead(look_ahead):
    """Outputs of the first steps of a late detector are about no frame, and agree whatever the graph does."""
    graph = graph_of(student("tsa", **SMALLEST, look_ahead=look_ahead), SIZE, num_frames=None)
    calls, run = [], run_torch(graph)

    def counted(inputs):
        calls.append(inputs)
        return run(inputs)

    measure_parity(graph, counted, moving_blobs(3, SIZE), lanes=1, steps=4)
    assert len(calls) == 4 + look_ahead


@needs_onnx
@pytest.mark.parametrize("opset", [-1, 0, 11, 17, 26, 99])
def test_an_opset_that_cannot_be_written_is_refused_before_the_work(opset, monkeypatch, tmp_path):
    monkeypatch.setattr(export, "_capture", lambda *_: pytest.fail("this takes a minute"))
    graph = graph_of(student("tsa"), SIZE, num_frames=None)
    with pytest.raises(UserError, match=rf"^opset {opset} cannot be written; choose one of 18 to 25$"):
        export_graph(graph, tmp_path / "model", moving_blobs(2, SIZE), NAMES, "onnx", opset=opset)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@needs_onnx
@pytest.mark.parametrize("opset", [21, max(onnx_file.OPSETS)])
def test_the_file_has_the_opset_asked_for_and_says_so(opset, smallest, tmp_path, caplog):
    model = export_graph(smallest, tmp_path / "model", moving_blobs(2, SIZE), NAMES, "onnx", steps=2, opset=opset)
    about = session(model.path).get_modelmeta().custom_metadata_map
    assert onnx_file.opset_of(model.path) == opset == int(about["opset"])
    assert not [record for record in caplog.records if record.name.startswith("onnx")]  # of no use to anybody


@pytest.mark.slow
@needs_onnx
def test_a_conversion_that_keeps_another_opset_is_an_error(smallest, monkeypatch, tmp_path):
    """As PyTorch's exporter does where it cannot convert: it warns in its log and goes on."""
    translate = torch.onnx.export
    monkeypatch.setattr(torch.onnx, "export", lambda *args, **named: translate(*args, **named | {"opset_version": 18}))
    with pytest.raises(UserError, match="this network was translated to opset 18, not to 20; choose opset 18"):
        export_graph(smallest, tmp_path / "model", moving_blobs(2, SIZE), NAMES, "onnx", steps=2, opset=20)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["folder", "file/below", "/proc/self/nothing", "n" * 252])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(place, monkeypatch, tmp_path):
    monkeypatch.setattr(export, "_capture", lambda *_: pytest.fail("this takes a minute"))
    (tmp_path / "folder.pt2").mkdir()
    (tmp_path / "file").touch()
    graph = graph_of(student("tsa"), SIZE, num_frames=None)
    with pytest.raises(UserError, match=rf"{place}\.pt2: cannot be written: "):
        export_graph(graph, tmp_path / place, moving_blobs(2, SIZE), NAMES, "torch_export")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.pt2"]


@pytest.mark.slow
def test_at_a_full_disk_the_earlier_files_stay(smallest, small_disk):
    for name in ("model.pt2", "model.json", "model.npz"):
        (small_disk / name).write_text("old")
    with pytest.raises(UserError, match=r"model\.pt2: cannot be written: No space left on device"):
        export_graph(smallest, small_disk / "model", moving_blobs(12, SIZE), NAMES, "torch_export", steps=4)
    assert {path.name: path.read_text() for path in small_disk.iterdir()} == dict.fromkeys(
        ("model.pt2", "model.json", "model.npz"), "old"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "tflite"}, "format must be one of onnx, torch_export, got 'tflite'"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"steps": 0}, "parity_frames must be at least 1"),
        ({"class_names": ("walk",)}, "network has 2 classes but the data names 1"),
        ({"frames": np.zeros((3, 48, 64, 3), np.uint8)}, r"frames must be uint8 \(N, 48, 60, 3\), got uint8"),
        ({"frames": np.zeros((3, 48, 60, 3))}, "frames must be uint8 .* got float64"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes, message, tmp_path):
    graph = graph_of(student("tsa"), SIZE, num_frames=None)
    arguments = {"frames": moving_blobs(2, SIZE), "class_names": NAMES, "format": "torch_export", "batch_size": 1}
    with pytest.raises(ValueError, match=message):
        export_graph(graph, tmp_path / "model", **{**arguments, **changes})
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named_with_the_command_that_brings_them(monkeypatch, tmp_path):
    monkeypatch.setattr(onnx_file.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(ValueError, match=r"format=onnx needs onnxscript; pip install '\.\[export\]'"):
        exported(student("tsa"), tmp_path, "onnx", batch_size=1)


def test_what_has_no_detector_is_refused():
    with pytest.raises(ValueError, match="LightningModule cannot be exported"):
        graph_of(L.LightningModule(), None, None)
    with pytest.raises(ValueError, match=r"image_size is a height and a width of at least 1 pixel, got \[0, 60\]"):
        graph_of(student("tsa"), (0, 60), None)


@needs_onnx
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
@pytest.mark.parametrize(("config", "weights"), [("distill_tsa", "tsa"), ("distill_dsta", "dsta"), ("evad", "evad")])
def test_shipped_weights_agree_over_200_frames_and_enter_the_table(
    config, weights, puppets_film, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    folder = ROOT / "results" / "weights"
    arguments = [
        f"--config={ROOT / 'configs' / config}.yaml",
        f"--ckpt_path={folder / weights}.pt",
        f"--video={puppets_film}",
    ]
    if "distill" in config:
        arguments.append(f"--model.init_args.teacher_weights={folder / 'evad_16f.pt'}")
        arguments.append(f"--model.init_args.start_from={folder / 'evad_causal.pt'}")
    main(["export", *arguments, "--benchmark=true"])
    about = session(Path(f"runs/export/{config}.onnx")).get_modelmeta().custom_metadata_map
    assert about["weights"] == str(folder / f"{weights}.pt")
    assert json.loads(about["class_names"])[:2] == ["sit_down", "stand_up"]
    parity = json.loads(about["parity"])
    assert parity["steps"] == 200
    assert parity["boxes"] < 1e-5
    assert max(parity[part] for part in ("boxes_pixels", "person_scores", "action_scores")) < 1e-3
    rows = [json.loads(line) for line in Path("results/benchmark.jsonl").read_text().splitlines()]
    by_name = {row["experiment"]: row for row in rows}
    own, teachers = (
        {
            runtime: row
            for runtime in ("onnxruntime", "PyTorch, same inputs")
            if (row := by_name.get(f"{name} ({runtime})"))
        }
        for name in (config, f"{config}, its teacher")
    )
    assert len(own) == 2 and len(teachers) == (2 if "distill" in config else 0)
    assert len(rows) == len(own) + len(teachers)
    assert all(0 < row["latency_p50_ms"] <= row["latency_p95_ms"] <= row["latency_p99_ms"] for row in rows)
    assert {row["frame"] for row in rows} == {"128 x 128"}
    for runtime, row in own.items():
        if not teachers:
            assert row["speedup"] is None
            continue
        teacher = teachers[runtime]
        assert row["speedup"] == pytest.approx(teacher["latency_p50_ms"] / row["latency_p50_ms"])
        assert (teacher["speedup"], teacher["delay"], teacher["gflops_unit"]) == (None, 7, "clip")
        assert (row["delay"], row["gflops_unit"]) == (0, "frame")
        assert teacher["weights"].endswith("evad_16f.pt")
    page = Path("results/benchmark.md").read_text().splitlines()
    (line,) = [line for line in page if line.startswith(f"| {config} (onnxruntime) ")]
    assert [cell.strip() for cell in line.split("|")][2:5] == [f"weights/{weights}.pt", "-", "-"]


def test_moving_blobs_move_and_are_the_same_for_the_same_seed():
    frames = moving_blobs(5, (30, 40), seed=1)
    assert (frames.shape, frames.dtype) == ((5, 30, 40, 3), np.uint8)
    assert all((frames[i] != frames[i + 1]).any() for i in range(4))
    np.testing.assert_array_equal(frames, moving_blobs(5, (30, 40), seed=1))
    assert (frames != moving_blobs(5, (30, 40), seed=2)).any()
