"""Detectors are measured on frames as large as those that a run scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from callbacks.benchmark.callback import BenchmarkTable
from callbacks.benchmark.rows import read_rows
from callbacks.measures.flops import count_gflops
from lightning_modules.clip_detection import ClipDetectionModule
from lightning_modules.detection_base import DetectionModule
from lightning_modules.evaluation.benchmark import FrameSize
from lightning_modules.networks.layers.stem import ConvolutionalStem
from lightning_modules.networks.layers.trunk_size import TrunkSize
from lightning_modules.networks.streaming import state_bytes
from lightning_modules.networks.students.frame_attention import FrameAttention
from lightning_modules.networks.students.trunk import StreamingTrunk
from lightning_modules.networks.weights.loading import save_weights
from lightning_modules.stream_detection import StreamDetectionModule
from lightning_modules.stream_distillation import DistillationModule
from tests.datamodules.miniature import NumberedVideos
from tests.lightning_modules import tiny

SIDES = (96, 128)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("measured")


@pytest.fixture(scope="module")
def source(folder) -> NumberedVideos:
    return NumberedVideos(folder, lengths=(12, 12, 9, 8), training=2, sizes=(SIDES,))


def clip_teacher(folder: Path) -> ClipDetectionModule:
    return ClipDetectionModule(tiny.teacher())


def student(folder: Path) -> StreamDetectionModule:
    return StreamDetectionModule(tiny.student())


def distilled_student(folder: Path) -> DistillationModule:
    weights = folder / "teacher.pt"
    save_weights(tiny.teacher().state_dict(), weights)
    return DistillationModule(tiny.student(), teacher=lambda _: tiny.teacher(), teacher_weights=str(weights))


def data_of(module: DetectionModule, source: NumberedVideos, folder: Path, short_side: int):
    make = tiny.clips if isinstance(module, ClipDetectionModule) else tiny.streams
    return make(source, folder / "cache", short_side=short_side)


@torch.no_grad()
def gflops_at(module: DetectionModule, height: int, width: int) -> float:
    """Count a call of the network on frames of this size, made here."""
    network, sizes = module.network, torch.tensor([[height, width]])
    if isinstance(module, ClipDetectionModule):
        return count_gflops(network, torch.randn(1, 3, 4, height, width), sizes).gflops
    frame, state = torch.randn(1, 1, 3, height, width), network.initial_state(1, (height, width))
    return count_gflops(network, frame, state, sizes).gflops


@pytest.mark.slow
@pytest.mark.parametrize("build", [clip_teacher, student, distilled_student], ids=lambda build: build.__name__)
def test_what_is_measured_has_the_size_of_the_frames_that_were_evaluated(
    build: Callable[[Path], DetectionModule], source, folder, tmp_path
):
    module = build(folder)
    assert module.measured_frame == FrameSize((64, 64), (64, 64))  # nothing has been seen yet
    tiny.trainer(tmp_path).validate(module, data_of(module, source, folder, 96), verbose=False)
    measured = module.benchmark()
    assert measured.frame == SIDES == measured.inputs[0].shape[-2:]
    assert measured.inputs[-1].tolist() == [list(SIDES)]
    counted = count_gflops(measured.network, *measured.inputs).gflops
    assert counted == pytest.approx(gflops_at(module, *SIDES), rel=1e-6)
    assert counted > 1.2 * gflops_at(module, 64, 64)
    with torch.no_grad():
        measured.step()
    if measured.state is not None:
        assert state_bytes(measured.state) == state_bytes(module.network.initial_state(1, SIDES))


def test_the_clip_that_a_student_is_compared_with_has_the_size_of_its_frames(source, folder, tmp_path):
    module = distilled_student(folder)
    tiny.trainer(tmp_path).validate(module, data_of(module, source, folder, 96), verbose=False)
    seen: list[torch.Size] = []
    backbone = module.teacher.network.backbone
    hook = backbone.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].shape))
    reference = module.benchmark().reference
    reference()
    hook.remove()
    assert seen == [(1, 3, module.teacher.network.num_frames, *SIDES)]


def test_padding_is_measured_and_every_run_has_a_size_of_its_own(source, folder, tmp_path):
    module = clip_teacher(folder)
    for short_side, expected in ((64, FrameSize((64, 96), (64, 85))), (96, FrameSize(SIDES, SIDES))):
        table = BenchmarkTable(folder=tmp_path / "results", warmup=0, repeats=1)
        data = data_of(module, source, folder, short_side)
        tiny.trainer(tmp_path, callbacks=[table]).test(module, data, verbose=False)
        assert module.measured_frame == expected
    assert [row.frame for row in read_rows(tmp_path / "results" / "benchmark.jsonl")] == ["64 x 96", "96 x 128"]
    page = (tmp_path / "results" / "benchmark.md").read_text()
    assert "| 96 x 128 |" in page and "| 64 x 96 " not in page  # the newest row is shown


@pytest.fixture
def evaluation_batch(source, folder):
    data = tiny.streams(source, folder / "cache", short_side=64)
    data.prepare_data()
    data.setup("validate")
    return next(iter(data.val_dataloader()))


def frame_size_after(module: DetectionModule, *batches) -> FrameSize:
    for number, batch in enumerate(batches):
        module.on_validation_batch_start(batch, number)
    return module.measured_frame


def test_of_maps_the_frames_are_measured_that_they_were_made_of(evaluation_batch):
    module = student(Path())
    size = TrunkSize(8, 2, 2, 2.0, patch_size=32, num_frames=4, pretrain_size=64, pyramid_layers=(0, 0, 1, 1))
    stem = ConvolutionalStem("test_efficientnet.r160_in1k", stages=(3, 4))
    module.network.trunk = StreamingTrunk(size, FrameAttention, stem=stem)
    lanes, length, _, height, width = evaluation_batch.frames.shape
    maps = torch.zeros(lanes, length, stem.channels, height // stem.stride, width // stem.stride, dtype=torch.float16)
    assert frame_size_after(module, evaluation_batch._replace(frames=maps)) == FrameSize((64, 96), (64, 85))


def test_placeholders_have_no_size(evaluation_batch):
    lanes = len(evaluation_batch.video_ids)
    empty = evaluation_batch._replace(
        video_ids=("",) * lanes, frames=torch.zeros(lanes, 1, 3, 32, 32), image_sizes=torch.full((lanes, 2), 32)
    )
    partly = evaluation_batch._replace(video_ids=("a", ""), image_sizes=torch.tensor([[64, 85], [64, 96]]))
    assert frame_size_after(student(Path()), empty, partly, empty) == FrameSize((64, 96), (64, 85))
