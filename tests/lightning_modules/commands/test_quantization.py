"""Quantised files compute nearly what the float32 graph does, and say how nearly."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.errors import UserError
from datamodules.frames.store import DecodedFrames, FrameScale
from datamodules.predict import PredictDataModule
from lightning_modules.clip_detection import ClipDetectionModule
from lightning_modules.commands.export import video_frames
from lightning_modules.commands.export_data import card_of, clips_of, measure_map, quantizer_of, require_split
from lightning_modules.commands.export_graph import export_graph, graph_of
from lightning_modules.commands.export_parity import load, moving_blobs, run_torch
from lightning_modules.commands.onnx_file import ONNX_PACKAGES, importlib
from lightning_modules.commands.quantization import (
    Differences,
    QuantizationSettings,
    Quantizer,
    calibration_inputs,
    measure_differences,
)
from lightning_modules.networks.weights.loading import save_weights
from lightning_modules.stream_detection import StreamDetectionModule
from tests.datamodules.miniature import NumberedVideos
from tests.datamodules.written_videos import write_video
from tests.lightning_modules import tiny
from tests.networks.tiny import randomise
from tests.networks.weights.small import small_card, small_config

SIZE = (48, 60)
NAMES = ("walk", "sit")
SHALLOW = {"num_stages": 1, "decoder_depth": 1}
needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ONNX_PACKAGES),
    reason="needs onnx, onnxscript and onnxruntime: pip install '.[export]'",
)


def student(temporal: str = "dsta", **changes) -> StreamDetectionModule:
    return StreamDetectionModule(randomise(tiny.student(temporal, **{**SHALLOW, **changes})))


def teacher() -> ClipDetectionModule:
    return ClipDetectionModule(randomise(tiny.teacher(**SHALLOW)))


@pytest.fixture(scope="module", params=["dsta", "tsa", "evad"])
def exported(request, tmp_path_factory):
    """A graph and its file in float32."""
    graph = graph_of(teacher() if request.param == "evad" else student(request.param), SIZE, num_frames=None)
    frames = moving_blobs(8, SIZE)
    return graph, export_graph(graph, tmp_path_factory.mktemp(request.param) / "model", frames, NAMES, steps=2).path


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "static-int8"])
def test_products_are_in_int8_and_detect_nearly_the_same(exported, kind, tmp_path):
    import onnx

    graph, path = exported
    target, float32 = tmp_path / "int8.onnx", load(path)
    clips = [moving_blobs(6, SIZE, seed) for seed in (1, 2)] if kind == "static-int8" else []
    Quantizer(kind, clips).write(path, target, graph, float32, 1)
    operators = [node.op_type for node in onnx.load(target).graph.node]
    wanted = "MatMulInteger" if kind == "int8" else "QuantizeLinear"
    in_float = [node.op_type for node in onnx.load(path).graph.node]
    assert operators.count(wanted) >= 10 and wanted not in in_float
    found = measure_differences(graph, (float32, load(target)), moving_blobs(10, SIZE, seed=3), 1, 6)
    for mean, largest in (found.boxes, found.boxes_pixels, found.person_scores, found.action_scores):
        assert 0 < mean <= largest
    # Random weights of a net 32 wide: rounding to 8 bits shows, another function would be farther away by far.
    assert found.person_scores[0] < 0.05 and found.action_scores[0] < 0.05 and found.boxes[0] < 0.05
    none = measure_differences(graph, (float32, load(path)), moving_blobs(10, SIZE, seed=3), 1, 6)
    assert (none.boxes, none.person_scores, none.action_scores) == ((0, 0), (0, 0), (0, 0))


@needs_onnx
@pytest.mark.slow
def test_an_int8_file_says_how_it_was_made_and_what_it_costs(tmp_path):
    import onnxruntime

    graph = graph_of(student("tsa"), SIZE, num_frames=None)
    maps = iter((0.5, 0.4375))
    clips = [moving_blobs(4, SIZE, 1)]
    quantizer = Quantizer("static-int8", clips, lambda run: next(maps), {"calibration": {"videos": 1}})
    made = export_graph(graph, tmp_path / "int8", moving_blobs(8, SIZE), NAMES, steps=3, quantizer=quantizer)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["int8.npz", "int8.onnx"]
    session = onnxruntime.InferenceSession(made.path, providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    cost = json.loads(about["quantization"])
    assert about["precision"] == cost["kind"] == "static-int8"
    assert (cost["steps"], cost["calibration"], cost["map"]) == (3, {"videos": 1}, {"float32": 0.5, "int8": 0.4375})
    float32 = json.loads(about["parity"])
    assert float32["boxes_pixels"] < 1e-2 < cost["differences"]["boxes_pixels"][1]
    summary = made.summary().splitlines()
    assert summary[1].startswith("in float32 it differs from PyTorch over 3 frames")
    assert summary[2].startswith("static-int8 differs from that by ")
    assert summary[3] == "mAP 0.5000 in float32, 0.4375 in int8"


@needs_onnx
def test_int8_needs_onnx(tmp_path):
    graph = graph_of(student("tsa"), SIZE, num_frames=None)
    with pytest.raises(UserError, match="quantize=int8 needs format=onnx, got 'torch_export'"):
        export_graph(graph, tmp_path / "x", moving_blobs(2, SIZE), NAMES, "torch_export", quantizer=Quantizer("int8"))


@pytest.mark.parametrize("person", [0.9, 0.2])
def test_differences_are_those_of_the_nearest_proposals(person):
    """A graph that gives the same proposals in another order differs by what is added to them alone."""
    graph = graph_of(student("tsa", num_proposals=4), SIZE, num_frames=None)
    rng = np.random.default_rng(0)
    boxes = np.sort(rng.uniform(0, 40, (1, 4, 4)), axis=-1).astype(np.float32)
    persons = np.array([[person, 0.1, 0.05, 0.01]], np.float32)
    outputs = {"boxes": boxes, "person_scores": persons, "action_scores": rng.random((1, 4, 2)).astype(np.float32)}
    after = run_torch(graph)

    def first(inputs):
        return after(inputs) | outputs

    def second(inputs):
        moved = {name: value[:, [2, 0, 3, 1]] for name, value in outputs.items()}
        moved["boxes"] = moved["boxes"] + np.array([0.6, 0, 0, 0], np.float32)
        moved["action_scores"] = moved["action_scores"] + np.array([0, 0.02], np.float32)
        return after(inputs) | moved

    found = measure_differences(graph, (first, second), moving_blobs(3, SIZE), 1, 5)
    assert (found.people, found.compared) == ((True, 5) if person == 0.9 else (False, 20))
    assert found.boxes_pixels == pytest.approx((0.15, 0.6), rel=1e-3)
    assert found.boxes == pytest.approx((0.15 / 60, 0.6 / 60), rel=1e-3)
    assert found.person_scores == (0, 0)
    assert found.action_scores == pytest.approx((0.01, 0.02), rel=1e-3)
    what = "people" if found.people else "proposals"
    assert str(found).endswith(f"on average over {found.compared} {what}")
    assert isinstance(found, Differences)


def test_a_step_is_calibrated_with_the_state_of_the_frame_before_and_anew_for_each_video():
    graph = graph_of(student("tsa"), SIZE, num_frames=None)
    run, clips = run_torch(graph), [moving_blobs(3, SIZE, seed) for seed in (1, 2)]
    inputs = list(calibration_inputs(graph, run, clips, lanes=2))
    assert len(inputs) == 6 and inputs[0]["frames"].shape == (2, *SIZE, 3)
    name = next(name for name in inputs[0] if name.endswith("embedding.past"))
    start = graph.initial_state(2)[name].numpy()
    assert [np.array_equal(given[name], start) for given in inputs] == [True, False, False, True, False, False]
    np.testing.assert_array_equal(inputs[2][name], run(inputs[1])[f"next_{name}"])
    np.testing.assert_array_equal(inputs[4]["frames"][1], clips[1][1])


@pytest.mark.parametrize(
    ("frames", "starts"), [(3, [[0, 1, 2, 2]]), (4, [[0, 1, 2, 3]]), (11, [[0, 1, 2, 3], [4, 5, 6, 7]])]
)
def test_a_clip_is_calibrated_on_clips_one_after_another(frames, starts):
    graph = graph_of(teacher(), SIZE, num_frames=4)
    video = moving_blobs(frames, SIZE)
    inputs = list(calibration_inputs(graph, lambda _: pytest.fail("a clip has no state"), [video], lanes=1))
    assert len(inputs) == len(starts)
    for given, places in zip(inputs, starts, strict=True):
        np.testing.assert_array_equal(given["frames"], video[places][None])


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return NumberedVideos(folder, lengths=(40, 24, 33, 9, 26, 14), training=2, sizes=((96, 128),))


@pytest.mark.parametrize("kind", ["student", "teacher"])
def test_the_map_of_a_graph_is_that_of_its_network(source, tmp_path, kind):
    """PyTorch's own graph in the place of an exported one: Lightning's evaluation of the network agrees."""
    network = tiny.teacher() if kind == "teacher" else tiny.student("tsa", look_ahead=1)
    tiny.place_proposals(network)
    module = (ClipDetectionModule if kind == "teacher" else StreamDetectionModule)(network)
    make = tiny.clips if kind == "teacher" else tiny.streams
    data = make(source, tmp_path / "cache")
    expected = tiny.trainer(tmp_path).validate(module, data, verbose=False)[0]["val/map"]
    assert 0 < expected < 1
    graph = graph_of(module, (64, 85), getattr(data, "num_frames", None))
    own, stream = module.network, getattr(module, "stream", None)
    fresh = make(source, tmp_path / "cache")
    assert measure_map(run_torch(graph), module, fresh, graph, num_videos=9) == pytest.approx(expected, abs=1e-6)
    assert module.network is own and getattr(module, "stream", None) is stream
    few = measure_map(run_torch(graph), module, make(source, tmp_path / "cache"), graph, num_videos=1)
    assert few != pytest.approx(expected, abs=1e-6)


def test_calibration_takes_frames_of_training_videos_drawn_by_seed(source, tmp_path):
    data = tiny.streams(source, tmp_path)
    drawn = {"length": 100, "videos": 1}
    first = [next(clips_of(data, "train", (64, 85), seed=seed, **drawn)) for seed in (*range(6), 0)]
    assert all(clip.shape[1:] == (64, 85, 3) for clip in first)
    assert {len(clip) for clip in first} == {20, 12}  # of 40 and 24 frames
    np.testing.assert_array_equal(first[0], first[-1])
    assert [len(clip) for clip in clips_of(data, "train", (32, 32), length=100, total=25)] == [20, 5]
    settings = QuantizationSettings(videos=2, frames=3, seed=1)
    module = StreamDetectionModule(tiny.student("tsa"))
    quantizer = quantizer_of("static-int8", settings, module, data, graph_of(module, (64, 85), None))
    assert [len(clip) for clip in quantizer.clips] == [3, 3] and quantizer.measure_map is None
    assert quantizer.about["calibration"] == {
        "on": "training split of NumberedVideos",
        "videos": 2,
        "frames": 6,
        "seed": 1,
    }


def test_data_without_training_videos_calibrate_nothing():
    with pytest.raises(UserError, match="quantize: PredictDataModule has no videos of a data set"):
        require_split(PredictDataModule("film.mp4", ["walk", "sit"]))


def test_the_card_of_an_export_is_that_of_its_weights_or_of_the_data(source, tmp_path):
    data, config = tiny.streams(source, tmp_path), small_config()
    module = StreamDetectionModule(tiny.student("tsa", look_ahead=1))
    save_weights({"x": torch.ones(1)}, tmp_path / "with.pt", small_card(config))
    save_weights({"x": torch.ones(1)}, tmp_path / "without.pt")
    card = card_of(module, data, str(tmp_path / "with.pt"), None)
    assert (card.frame_rate, card.trained_on, card.classes) == (16.0, "miniature", tuple(data.class_names))
    assert card_of(module, data, str(tmp_path / "with.pt"), 25.0).frame_rate == 25.0
    data.store = DecodedFrames(FrameScale(48))  # data.frames.short_side
    assert card_of(module, data, str(tmp_path / "with.pt"), None).short_side == 48
    data.store = DecodedFrames(FrameScale(None))
    assert card_of(module, data, str(tmp_path / "with.pt"), None).short_side == small_card(config).short_side == 64
    data = tiny.streams(source, tmp_path)
    for weights in (None, str(tmp_path / "without.pt")):
        card = card_of(module, data, weights, None)
        assert (card.network, card.frame_stride, card.short_side) == ({"class_path": "StreamingDetector"}, 2, 64)
        assert (card.look_ahead, card.frame_rate, card.trained_on) == (1, None, "NumberedVideos")


def test_the_card_of_an_export_has_the_delay_of_the_network_not_that_of_its_weights(source, tmp_path):
    data, config = tiny.streams(source, tmp_path), small_config()
    save_weights({"x": torch.ones(1)}, tmp_path / "late.pt", small_card(config))
    module = StreamDetectionModule(tiny.student("tsa", look_ahead=1))
    card = card_of(module, data, str(tmp_path / "late.pt"), None)
    assert (small_card(config).look_ahead, card.look_ahead) == (3, 1)
    assert card.network["init_args"]["timing"] == asdict(module.network.timing)


def test_a_film_is_read_as_predict_reads_it(source, tmp_path):
    """At the short side of the card, where the data keep the size of their own videos."""
    write_video(tmp_path / "film.mp4", moving_blobs(9, (96, 128)), 16)
    data = tiny.streams(source, tmp_path / "cache")
    data.store = DecodedFrames(FrameScale(None))
    frames = video_frames(tmp_path / "film.mp4", data, 3, None, short_side=64)
    assert frames.shape == (3, 64, 85, 3)
    read = PredictDataModule(str(tmp_path / "film.mp4"), ["walk"], frame_stride=2, frame_rate=16.0, short_side=64)
    read.setup("predict")
    (batch, *_) = read.predict_dataloader()
    assert batch.image_sizes.tolist() == [[64, 85]]
    with pytest.raises(UserError, match=r"film.mp4 is read in 85x64 pixels, but image_size=\[96, 128\]; leave"):
        video_frames(tmp_path / "film.mp4", data, 3, (96, 128), short_side=64)


@pytest.mark.parametrize("setting", [{"videos": 0}, {"frames": 0}, {"seed": -1}, {"map_videos": -1}])
def test_impossible_settings_are_refused(setting):
    with pytest.raises(UserError, match="must be at least"):
        QuantizationSettings(**setting)


def test_files_of_the_benchmark_are_found():
    from results.benchmarks.exported import int8_cost

    assert set(int8_cost.PARTS) <= {path.stem for path in Path(int8_cost.ROOT / "results/weights").glob("*.pt")}
