"""Terms of distillation on a GPU under bf16 autocast: seen without a GPU, by tensors without values.

Autocast there refuses operators that a CPU allows, and tensors of two devices do not mix. A backward pass needs a GPU.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from datamodules.batches import ClipBatch
from lightning_modules import stream_distillation
from lightning_modules.distillation_terms import AttentionTerm, Lesson, default_terms
from lightning_modules.networks.layers.pixels import normalise_frames
from lightning_modules.stream_distillation import DistillationModule
from tests.lightning_modules import tiny

GPU = torch.device("cuda")
SAMPLES, KEYFRAMES = 2, (3, 4)


@pytest.fixture
def fake():
    """A mode of fake tensors, with autocast on as a Trainer turns it on."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        with FakeTensorMode() as mode:
            yield mode
    finally:
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])


def move(module: nn.Module, mode: FakeTensorMode) -> None:
    """Put fakes of all parameters and buffers on the GPU in their places."""
    for part in module.modules():
        for name, value in part.named_parameters(recurse=False):
            moved = mode.from_tensor(value).detach().to(GPU)
            part._parameters[name] = nn.Parameter(moved, requires_grad=value.requires_grad)
        for name, value in part.named_buffers(recurse=False):
            part._buffers[name] = mode.from_tensor(value).to(GPU)


def batch() -> ClipBatch:
    count = SAMPLES * len(KEYFRAMES)
    sizes = torch.empty(SAMPLES, 2, dtype=torch.long, device=GPU)
    supervised = torch.empty(SAMPLES, len(KEYFRAMES), dtype=torch.bool, device=GPU)
    return ClipBatch(
        frames=torch.empty(SAMPLES, 8, 3, 64, 64, dtype=torch.uint8, device=GPU),
        image_sizes=sizes,
        keyframes=KEYFRAMES,
        annotated=supervised,
        exists=supervised,
        boxes=(torch.empty(2, 4, device=GPU),) * count,
        labels=(torch.empty(2, 2, device=GPU),) * count,
        video_ids=("film",) * SAMPLES,
        timestamps=torch.empty(SAMPLES, len(KEYFRAMES), dtype=torch.float64, device=GPU),
        original_sizes=sizes,
    )


def losses(module: DistillationModule, given: ClipBatch) -> dict[str, Tensor]:
    """The terms of a training step; which frames exist is a question of values, so all of them do."""
    frames = normalise_frames(given.frames, given.image_sizes)
    encoded, state = module.encode(given, frames)
    student, shown = module.detect_supervised(given, encoded, state), torch.arange(4, device=GPU)
    sizes = given.image_sizes.repeat_interleave(len(KEYFRAMES), dim=0)
    maps, networks = module.supervised_maps(encoded, given), (module.network, module.teacher.network)
    lesson = Lesson(student.of(shown), module.ask_teacher(given, frames, shown), maps, sizes, networks, same_order=True)
    return {term.name: term(lesson) for term in module.terms}


@pytest.mark.parametrize("changes", [{}, {"dim": 16}], ids=["same width", "narrower"])
@pytest.mark.parametrize("temporal", ["tsa", "dsta"])
def test_every_term_is_computed_on_a_gpu_in_full_precision(monkeypatch, request, temporal, changes):
    monkeypatch.setattr(stream_distillation, "load_weights", lambda *_: None)
    student, teacher = tiny.student(temporal, **changes), tiny.teacher()
    terms = [*default_terms(), AttentionTerm()]
    module = DistillationModule(student, lambda _: teacher, "absent.pt", start_from=None, terms=terms)
    mode = request.getfixturevalue("fake")
    move(module, mode)
    found = losses(module, batch())
    assert set(found) == {"features", "actions", "boxes", "attention"}
    assert {(value.device.type, value.dtype, value.shape) for value in found.values()} == {("cuda", torch.float32, ())}
