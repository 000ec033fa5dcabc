"""Exported steps and clips compute what the networks do, under names that a program without this repository can use."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch

from datamodules.puppets import Puppets
from lightning_modules.clip_detection import ClipDetectionModule
from lightning_modules.commands import export_graph as export
from lightning_modules.commands.export_graph import Exported, export_graph, graph_of, moving_blobs
from lightning_modules.networks.detections import Detections, decode_detections
from lightning_modules.networks.student import StreamingDetector
from lightning_modules.stream_detection import StreamDetectionModule
from main import main
from tests.lightning_modules import tiny
from tests.networks.tiny import randomise

ROOT = Path(__file__).resolve().parents[2]
SIZE = (48, 60)
"""Of the frames; the networks see them padded to 64 x 64."""
NAMES = ("walk", "sit")
ALL_OPTIONS = {"num_proposals": 6, "carried_proposals": 2, "num_actors": 3, "decoder_refines_context": False}
SHALLOW = {"num_stages": 1, "decoder_depth": 1}
"""The exporter takes its time for every operator."""
needs_onnx = pytest.mark.skipif(
    any(export.importlib.util.find_spec(name) is None for name in export.ONNX_PACKAGES),
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
    """What ``predict`` makes of every proposal: boxes, person and action scores, (B, Q, ...)."""
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


@needs_onnx
def test_a_step_run_by_onnxruntime_detects_what_the_network_does(dsta):
    network, model = dsta
    frames = moving_blobs(20, SIZE, seed=3)[:, None]
    for found, expected in zip(stream_through(model.path, frames, 1), expected_of_stream(network, frames), strict=True):
        assert_close(found, expected)


@needs_onnx
def test_the_state_changes_what_a_step_detects(dsta):
    _, model = dsta
    frames = np.repeat(moving_blobs(1, SIZE)[:, None], 3, axis=0)
    first, *_, last = stream_through(model.path, frames, 1)
    assert np.abs(first[2] - last[2]).max() > 1e-3


@needs_onnx
def test_inputs_and_outputs_are_named_after_the_state(dsta):
    _, model = dsta
    state = ["embedding.past", "embedding.filled"]
    state += [f"blocks.{block}.{part}" for block in (0, 1) for part in ("hidden", "cell")]
    state += ["memory.tokens", "memory.places", "memory.filled"]
    state += ["proposals.features", "proposals.boxes", "proposals.filled"]
    runtime = session(model.path)
    inputs = {given.name: (given.type, given.shape) for given in runtime.get_inputs()}
    assert list(inputs) == ["frames", *(f"state.{name}" for name in state)]
    assert inputs["frames"] == ("tensor(uint8)", [1, *SIZE, 3])
    assert inputs["state.memory.places"] == ("tensor(int64)", [1, 3, 8])
    assert inputs["state.proposals.boxes"] == ("tensor(float)", [1, 2, 4])
    outputs = {given.name: given.shape for given in runtime.get_outputs()}
    assert list(outputs) == [
        "boxes",
        "person_scores",
        "action_scores",
        *(f"next_state.{name}" for name in state),
    ]
    assert (outputs["boxes"], outputs["person_scores"], outputs["action_scores"]) == ([1, 3, 4], [1, 3], [1, 3, 2])


@needs_onnx
def test_the_initial_state_lies_beside_the_model(dsta):
    network, model = dsta
    state = network.initial_state(1, (64, 64))
    with np.load(model.state_path) as stored:
        assert set(stored) == {given.name for given in session(model.path).get_inputs()} - {"frames"}
        for name, value in (
            ("state.embedding.past", state.embedding.past),
            ("state.blocks.1.cell", state.blocks[1].cell),
            ("state.memory.filled", state.memory.filled),
        ):
            np.testing.assert_array_equal(stored[name], value.numpy())


@needs_onnx
def test_an_onnx_file_says_what_it_is(dsta):
    _, model = dsta
    about = session(model.path).get_modelmeta().custom_metadata_map
    assert json.loads(about["class_names"]) == list(NAMES)
    assert json.loads(about["image_size"]) == list(SIZE)
    assert json.loads(about["normalisation"]) == {"inside": True, "mean": 0.45, "std": 0.225, "padded_to": [64, 64]}
    assert (about["kind"], about["precision"], about["opset"]) == ("step", "float32", "18")
    assert (about["torch"], about["score"]) == (torch.__version__, "person_x_action")
    parity = json.loads(about["parity"])
    assert (parity["steps"], parity["tolerance"]) == (4, 1e-3)
    assert 0 < parity["boxes_pixels"] < 1e-3
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


@needs_onnx
def test_the_readmes_example_runs_on_a_video_without_this_repository(dsta, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    examples = [block for block in blocks if "onnxruntime" in block]
    assert len(examples) == 1 and "person >= 0.5" in examples[0]
    everybody = examples[0].replace("person >= 0.5", "person >= 0")  # random weights may take nobody for a person
    network, model = dsta
    write_video(tmp_path / "video.mp4", moving_blobs(6, (96, 120)))
    said = run_as_stranger(everybody, tmp_path, str(model.path), "video.mp4").splitlines()
    frames, actors = 3, network.num_actors or network.num_proposals
    assert len(said) == frames * actors
    assert all(any(name in line for name in NAMES) for line in said)

    import onnx

    late = onnx.load(model.path)
    (entry,) = (entry for entry in late.metadata_props if entry.key == "look_ahead")
    assert entry.value == "0"
    entry.value = "1"
    onnx.save(late, tmp_path / "late.onnx")
    (tmp_path / "late.npz").write_bytes(model.state_path.read_bytes())
    said_late = run_as_stranger(everybody, tmp_path, "late.onnx", "video.mp4").splitlines()
    # The first detections are those of a frame before the stream; what was said of the second is about the first.
    assert [line.split(" s ")[0] for line in said_late] == [line.split(" s ")[0] for line in said[: 2 * actors]]
    assert [line.split(" s ")[1] for line in said_late] == [line.split(" s ")[1] for line in said[actors:]]


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


@pytest.mark.parametrize("error", [0.01, float("nan")])
def test_a_graph_that_detects_something_else_is_not_written(error, monkeypatch, tmp_path):
    load = export.load

    def load_wrong(path, graph):
        run = load(path, graph)
        return lambda inputs: {
            name: value + error if "scores" in name else value for name, value in run(inputs).items()
        }

    monkeypatch.setattr(export, "load", load_wrong)
    with pytest.raises(ValueError, match=r"differs from PyTorch by up to boxes_pixels .*person_scores (0.01|nan)"):
        exported(student("tsa", depth=1, pyramid_layers=[0, 0, 0, 0], window=0), tmp_path, "torch_export", batch_size=1)
    assert list(tmp_path.iterdir()) == []


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
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else object())
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
def test_shipped_weights_agree_over_200_frames_and_enter_the_table(config, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Puppets(root=tmp_path / "puppets", size="tiny").prepare()
    video = next((tmp_path / "puppets").rglob("val_*.mp4"))
    folder = ROOT / "results" / "weights"
    arguments = [f"--config={ROOT / 'configs' / config}.yaml", f"--ckpt_path={folder / weights}.pt", f"--video={video}"]
    if "distill" in config:
        arguments.append(f"--model.init_args.teacher_weights={folder / 'evad.pt'}")
    main(["export", *arguments, "--benchmark=true"])
    about = session(Path(f"runs/export/{config}.onnx")).get_modelmeta().custom_metadata_map
    assert about["weights"] == str(folder / f"{weights}.pt")
    assert json.loads(about["class_names"])[:2] == ["sit_down", "stand_up"]
    parity = json.loads(about["parity"])
    assert parity["steps"] == 200
    assert max(parity[part] for part in ("boxes_pixels", "person_scores", "action_scores")) < 1e-3
    rows = [json.loads(line) for line in Path("results/benchmark.jsonl").read_text().splitlines()]
    assert [row["experiment"] for row in rows] == [f"{config} (onnxruntime)", f"{config} (PyTorch, same inputs)"]
    assert all(0 < row["latency_p50_ms"] <= row["latency_p95_ms"] <= row["latency_p99_ms"] for row in rows)
    assert all((row["speedup"] is None) == (config == "evad") for row in rows)
    assert f"| {config} (onnxruntime) | weights/{weights}.pt | - | - |" in Path("results/benchmark.md").read_text()


def test_moving_blobs_move_and_are_the_same_for_the_same_seed():
    frames = moving_blobs(5, (30, 40), seed=1)
    assert (frames.shape, frames.dtype) == ((5, 30, 40, 3), np.uint8)
    assert all((frames[i] != frames[i + 1]).any() for i in range(4))
    np.testing.assert_array_equal(frames, moving_blobs(5, (30, 40), seed=1))
    assert (frames != moving_blobs(5, (30, 40), seed=2)).any()
