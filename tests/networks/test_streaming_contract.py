"""The streaming contract, held to every streaming module: attention, blocks and whole students.

Modules run in float64. A student's boxes and logits leave its heads in float32 whatever it runs in, so those are
compared to 1e-4 and its state, which stays in float64, to 1e-10.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lightning_modules.networks.streaming import StreamingModule, select_lanes, state_bytes
from lightning_modules.networks.students.block import StreamingBlock
from lightning_modules.networks.students.causal_attention import AttentionFactory, CausalAttention
from lightning_modules.networks.students.decomposed_attention import DecomposedAttention
from lightning_modules.networks.students.detector import StreamingDetector
from lightning_modules.networks.students.temporal_shift import TemporalShiftAttention
from lightning_modules.networks.temporal.backbones.recurrent_features import RecurrentFeatures
from lightning_modules.networks.temporal.backbones.trunk_features import TrunkFeatures
from lightning_modules.networks.temporal.frame_scores import FrameScores
from tests.networks.tiny import randomise, tiny_student, trunk_of

STREAMS, FRAMES, PATCHES, DIM = 2, 8, 4, 8


class MeanState(NamedTuple):
    """The sum of a stream's normed tokens so far (B, N, C), and of how many frames it is (B,)."""

    total: Tensor
    count: Tensor


class RunningMean(CausalAttention[MeanState]):
    """An attention that this project does not ship: a frame's tokens are mixed with the mean of the stream so far."""

    receptive_field = None

    def __init__(self, dim: int, num_heads: int, num_patches: int) -> None:
        super().__init__(dim, num_heads, num_patches)
        self.share = torch.nn.Parameter(torch.zeros(dim))

    def initial_state(self, batch_size, num_patches=None, *, device=None, dtype=None) -> MeanState:
        shape = (batch_size, num_patches or self.num_patches, self.share.numel())
        return MeanState(torch.zeros(shape, device=device, dtype=dtype), torch.zeros(batch_size, device=device))

    def forward(self, tokens: Tensor, state: MeanState) -> tuple[Tensor, MeanState]:
        normed = self.norm1(tokens)
        totals = state.total[:, None] + normed.cumsum(1)
        counts = state.count[:, None] + torch.arange(1, tokens.shape[1] + 1)
        tokens = tokens + self.attn(normed) + self.share * totals / counts[..., None, None]
        return tokens, MeanState(totals[:, -1].clone(), counts[:, -1].clone())


ATTENTIONS: dict[str, Callable[[], StreamingModule]] = {
    **{
        f"tsa_{mode}_{rate}": lambda mode=mode, rate=rate: TemporalShiftAttention(DIM, 4, PATCHES, mode, rate)
        for mode in ("channel", "concat_kv")
        for rate in (0.25, 1.0)
    },
    "dsta_whole_width": lambda: DecomposedAttention(DIM, 2, PATCHES, lstm_dim=DIM),
    "dsta_narrow": lambda: DecomposedAttention(DIM, 2, PATCHES, lstm_dim=3),
    "a_third": lambda: RunningMean(DIM, 2, PATCHES),
}
BLOCKS: dict[str, Callable[[], StreamingModule]] = {
    "block_tsa": lambda: StreamingBlock(DIM, 2.0, TemporalShiftAttention(DIM, 2, PATCHES)),
    "block_dsta": lambda: StreamingBlock(DIM, 2.0, DecomposedAttention(DIM, 2, PATCHES)),
}
STUDENTS: dict[str, Callable[[], StreamingModule]] = {
    "student_tsa_channel": lambda: tiny_student("tsa", shift_mode="channel", memory_keep_rate=1.0),
    "student_tsa_concat_kv": lambda: tiny_student("tsa", shift_mode="concat_kv"),
    "student_tsa_no_memory": lambda: tiny_student("tsa", window=0),
    "student_dsta": lambda: tiny_student("dsta"),
    "student_tsa_ahead": lambda: tiny_student("tsa", look_ahead=2, roi_kernel="separable"),
    "student_dsta_ahead": lambda: tiny_student("dsta", look_ahead=3, num_actors=2, roi_kernel="separable"),
    "student_tsa_slots": lambda: tiny_student(
        "tsa", look_ahead=2, window=4, memory_stride=2, keyframe_code="answered", roi_kernel="separable"
    ),
    "student_tsa_next": lambda: tiny_student(
        "tsa", look_ahead=2, boxes_from="next", keyframe_code="answered", roi_kernel="separable"
    ),
    "student_dsta_next_slots": lambda: tiny_student(
        "dsta",
        look_ahead=3,
        boxes_from="next",
        window=4,
        memory_stride=2,
        keyframe_code="answered",
        roi_kernel="separable",
    ),
    "student_dsta_keeps_all": lambda: tiny_student("dsta", lstm_dim=16, memory_keep_rate=1.0, roi_kernel="separable"),
    "student_dsta_no_memory": lambda: tiny_student("dsta", window=0),
    "student_tsa_few_actors": lambda: tiny_student("tsa", num_actors=2),
    "student_tsa_plain_context": lambda: tiny_student("tsa", decoder_context="read"),
    "student_tsa_other_contexts": lambda: tiny_student("tsa", decoder_context="none", temporal_roi=False),
    "student_frame_no_memory": lambda: tiny_student("frame", window=0),
    "student_frame": lambda: tiny_student("frame"),
    "student_of_a_third_attention": lambda: tiny_student(RunningMean, roi_kernel="separable"),
    "student_dsta_every_saving": lambda: tiny_student(
        "dsta",
        num_actors=2,
        decoder_context="read",
        num_stages=1,
        decoder_depth=1,
        memory_keep_rate=0.3,
    ),
}


def trunk(temporal: str | AttentionFactory) -> TrunkFeatures:
    sizes = {"dim": DIM, "depth": 2, "num_heads": 2, "patch_size": 16, "mlp_ratio": 2.0}
    return TrunkFeatures(trunk_of(temporal, sizes | {"num_frames": 2, "pretrain_size": 32, "pyramid_layers": ()}))


SCORES: dict[str, Callable[[], StreamingModule]] = {
    "scores_tsa": lambda: FrameScores(trunk("tsa"), 3),
    "scores_dsta": lambda: FrameScores(trunk("dsta"), 3),
    "scores_of_stored_features": lambda: FrameScores(RecurrentFeatures(5, DIM), 3),
}
"""Modules that take frames or features of their ``step_shape``."""
MODULES = ATTENTIONS | BLOCKS
EVERYTHING = MODULES | SCORES | STUDENTS


class Stream(NamedTuple):
    """A module with random weights and a chunk of FRAMES frames for it."""

    module: StreamingModule
    frames: Tensor
    tolerance: float

    def start(self, streams: int = STREAMS) -> Any:
        return self.module.initial_state(streams, dtype=self.frames.dtype)


def build(name: str, frames: int = FRAMES, streams: int = STREAMS, dtype: torch.dtype = torch.float64) -> Stream:
    torch.manual_seed(0)
    module = randomise(EVERYTHING[name]()).to(dtype).eval()
    whole = name in STUDENTS
    if whole:
        shape = (3, module.frame_size, module.frame_size)
    else:
        shape = module.step_shape if name in SCORES else (PATCHES, DIM)
    return Stream(module, torch.randn(streams, frames, *shape, dtype=dtype), 1e-4 if whole else 1e-10)


def joined(chunks: Sequence[Any]) -> Any:
    """Outputs of consecutive chunks, one after the other along time."""
    return tree_map(lambda *parts: torch.cat(parts, dim=1), *chunks)


def run(stream: Stream, lengths: Sequence[int], state: Any = None) -> tuple[Any, Any]:
    """The outputs of consecutive chunks joined along time, and the last state."""
    assert sum(lengths) == stream.frames.shape[1]
    state, outputs = stream.start(len(stream.frames)) if state is None else state, []
    for chunk in stream.frames.split(list(lengths), dim=1):
        output, state = stream.module(chunk, state)
        outputs.append(output)
    return joined(outputs), state


def assert_same(ours: Any, theirs: Any, tolerance: float) -> None:
    for one, other in zip(tree_leaves(ours), tree_leaves(theirs), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


def differ(ours: Any, theirs: Any, least: float = 1e-7) -> bool:
    pairs = zip(tree_leaves(ours), tree_leaves(theirs), strict=True)
    return any((one - other).abs().max() > least for one, other in pairs)


def at(outputs: Any, index: Any) -> Any:
    """The same part of every tensor."""
    return tree_map(lambda part: part[index], outputs)


def every(modules: dict) -> Any:
    return pytest.mark.parametrize("name", modules)


@pytest.fixture(autouse=True)
def no_gradients(request):
    with torch.set_grad_enabled("gradient" in request.node.name):
        yield


@every(EVERYTHING)
def test_outputs_depend_on_the_past(name):
    """Without this the rest of the file would hold for a frame-wise network."""
    stream = build(name)
    whole, _ = run(stream, [FRAMES])
    alone = [stream.module(stream.frames[:, t : t + 1], stream.start())[0] for t in range(FRAMES)]
    alone = joined(alone)
    for t in range(1, FRAMES):
        assert differ(at(whole, np.s_[:, t]), at(alone, np.s_[:, t]), 1e-5)


@every(EVERYTHING)
@pytest.mark.parametrize("lengths", [(1,) * 8, (3, 5), (7, 1), (1, 2, 4, 1)], ids=str)
def test_any_split_of_a_clip_gives_the_same_outputs_and_the_same_last_state(name, lengths):
    stream = build(name)
    whole, whole_state = run(stream, [FRAMES])
    pieces, state = run(stream, lengths)
    assert_same(pieces, whole, stream.tolerance)
    assert_same(state, whole_state, 1e-10)


@every(STUDENTS)
def test_any_split_gives_a_student_the_same_in_float32(name):
    stream = build(name, dtype=torch.float32)
    whole, whole_state = run(stream, [FRAMES])
    pieces, state = run(stream, [1, 3, 4])
    assert_same(pieces, whole, 1e-4)
    assert_same(state, whole_state, 1e-4)


@every(EVERYTHING)
def test_outputs_do_not_depend_on_later_frames(name):
    stream = build(name)
    whole, _ = run(stream, [FRAMES])
    for seen in (1, 4, 7):
        noisy = torch.cat([stream.frames[:, :seen], 10 * torch.randn_like(stream.frames[:, seen:])], dim=1)
        outputs, _ = run(stream._replace(frames=noisy), [FRAMES])
        assert_same(at(outputs, np.s_[:, :seen]), at(whole, np.s_[:, :seen]), stream.tolerance)


@every(EVERYTHING)
def test_the_receptive_field_is_the_declared_one(name):
    field = build(name).module.receptive_field
    stream = build(name, frames=(field or 16) + 2)
    newest = at(run(stream, [stream.frames.shape[1]])[0], np.s_[:, -1])

    def newest_without(frame: int) -> Any:
        frames = stream.frames.clone()
        frames[:, frame] = 3 * torch.randn_like(frames[:, frame])
        return at(run(stream._replace(frames=frames), [frames.shape[1]])[0], np.s_[:, -1])

    if field is None:
        assert differ(newest_without(0), newest, 1e-12)
    else:
        assert_same(newest_without(-field - 1), newest, 0)
        assert differ(newest_without(-field), newest, 1e-9)


@every(EVERYTHING)
def test_the_state_handed_in_is_left_as_it_was(name):
    stream = build(name)
    _, state = run(stream._replace(frames=stream.frames[:, :3]), [3])
    before = tree_map(torch.clone, state)
    stream.module(stream.frames[:, 3:], state)
    stream.module(stream.frames[:, 3:4], state)
    assert_same(state, before, 0)


@every(EVERYTHING)
def test_the_new_state_keeps_no_chunk_in_memory(name):
    stream = build(name, frames=64)
    _, state = run(stream, [64])
    storages = [leaf.untyped_storage() for leaf in tree_leaves(state)]
    assert sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values()) <= state_bytes(state)


@every(EVERYTHING)
def test_the_state_is_nested_named_tuples_of_constant_shape_with_the_batch_first(name):
    stream = build(name, streams=3)
    start = stream.start(3)
    assert hasattr(start, "_fields")
    assert all(isinstance(leaf, Tensor) and len(leaf) == 3 for leaf in tree_leaves(start))
    state = start
    for length in (1, 4, 3):
        _, state = stream.module(stream.frames[:, :length], state)
        assert type(state) is type(start)
        assert state_bytes(state) == state_bytes(start)
        for new, old in zip(tree_leaves(state), tree_leaves(start), strict=True):
            assert (new.shape, new.dtype, new.device) == (old.shape, old.dtype, old.device)


@every(EVERYTHING)
def test_lanes_do_not_see_each_other(name):
    stream = build(name)
    together, _ = run(stream, [3, 5])
    for lane in range(STREAMS):
        alone, _ = run(stream._replace(frames=stream.frames[lane : lane + 1]), [3, 5])
        assert_same(at(together, np.s_[lane : lane + 1]), alone, stream.tolerance)


@every(EVERYTHING)
def test_nan_in_one_lane_stays_there_until_the_lane_is_reset(name):
    stream = build(name)
    clean, _ = run(stream, [3, 1, 4])
    frames = stream.frames.clone()
    frames[1, 2] = torch.nan
    first, state = stream.module(frames[:, :4], stream.start())
    assert any(leaf[1, 2:].isnan().any() for leaf in tree_leaves(first))
    healthy = at(clean, np.s_[0, :4])
    assert_same(at(first, np.s_[0]), healthy, stream.tolerance)

    state = select_lanes(torch.tensor([False, True]), stream.start(), state)
    second, _ = stream.module(stream.frames[:, 4:], state)
    fresh, _ = stream.module(stream.frames[1:, 4:], stream.start(1))
    assert_same(at(second, np.s_[1:]), fresh, stream.tolerance)
    assert_same(at(second, np.s_[0]), at(clean, np.s_[0, 4:]), stream.tolerance)


@every(EVERYTHING)
def test_a_held_lane_goes_on_as_if_the_frames_between_had_not_been(name):
    stream = build(name)
    _, before = stream.module(stream.frames[:, :3], stream.start())
    padded = stream.frames[:, 3:5].clone()
    padded[1] = torch.nan  # what a lane that has run out is padded with must not matter
    _, after = stream.module(padded, before)
    held = select_lanes(torch.tensor([False, True]), before, after)
    assert_same(at(held, np.s_[1]), at(before, np.s_[1]), 0)
    assert_same(at(held, np.s_[0]), at(after, np.s_[0]), 0)
    outputs, _ = stream.module(stream.frames[:, 5:], held)
    without = torch.cat([stream.frames[1:, :3], stream.frames[1:, 5:]], dim=1)
    expected, _ = run(stream._replace(frames=without), [6])
    assert_same(at(outputs, np.s_[1:]), at(expected, np.s_[:, 3:]), stream.tolerance)


@every(EVERYTHING)
def test_streams_may_start_at_different_times(name):
    stream = build(name, streams=3)
    starts = torch.tensor([0, 2, 5])
    state, steps = stream.start(3), []
    for t in range(FRAMES):
        state = select_lanes(starts == t, stream.start(3), state)
        output, state = stream.module(stream.frames[:, t : t + 1], state)
        steps.append(output)
    outputs = joined(steps)
    for lane, start in enumerate(starts.tolist()):
        alone, _ = run(stream._replace(frames=stream.frames[lane : lane + 1, start:]), [FRAMES - start])
        assert_same(at(outputs, np.s_[lane : lane + 1, start:]), alone, stream.tolerance)


LONG_RUNS = [
    *((name, 2000) for name in MODULES),
    *((name, 200) for name in SCORES),
    *((name, 200) for name in STUDENTS if name.endswith(("channel", "concat_kv", "dsta", "no_memory"))),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "steps"), LONG_RUNS)
def test_a_long_run_neither_drifts_nor_grows(name, steps):
    """Frame by frame against chunks of 100: 2,000 frames for modules, 200 for whole networks, which take longer."""
    stream = build(name, frames=steps, streams=1)
    stepwise, state = run(stream, [1] * steps)
    chunked, chunked_state = run(stream, [100] * (steps // 100))
    assert_same(stepwise, chunked, stream.tolerance)
    assert_same(state, chunked_state, 1e-10)
    assert state_bytes(state) == state_bytes(stream.start(1))
    early, late = (
        max(x[:, part].abs().max() for x in tree_leaves(stepwise)) for part in (slice(100), slice(-100, None))
    )
    assert late < 3 * early
    # The run has no memory of its length: a field's worth of frames leads to the same newest output.
    field = stream.module.receptive_field
    if field is not None:
        fresh, _ = run(stream._replace(frames=stream.frames[:, -field - 1 :]), [field + 1])
        assert_same(at(fresh, np.s_[:, -1]), at(stepwise, np.s_[:, -1]), stream.tolerance)


@every(EVERYTHING)
def test_one_chunk_and_its_pieces_give_the_same_gradients(name):
    gradients = []
    for lengths in ([6], [1, 2, 1, 2]):
        stream = build(name, frames=6)
        stream.frames.requires_grad_(True)
        outputs, state = run(stream, lengths)
        torch.manual_seed(1)
        parts = [part for part in tree_leaves((outputs, state)) if part.requires_grad]
        sum((part * torch.randn_like(part)).sum() for part in parts).backward()
        named = {key: p.grad for key, p in stream.module.named_parameters() if p.grad is not None}
        gradients.append({"frames": stream.frames.grad, **named})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 5
    for key, gradient in gradients[0].items():
        scale = gradient.abs().amax().item() if gradient.any() else 1.0  # some are empty or zero
        torch.testing.assert_close(gradients[1][key], gradient, rtol=0, atol=stream.tolerance * scale)
    assert gradients[0]["frames"][:, 0].any()


@every(EVERYTHING)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_no_grad_and_inference_mode_change_nothing(name, mode):
    stream = build(name)
    with torch.enable_grad():
        expected, _ = run(stream, [3, 5])
    with mode():
        state = stream.start()
        first, state = stream.module(stream.frames[:, :3], state)
        state = select_lanes(torch.tensor([False, False]), stream.start(), state)
        second, _ = stream.module(stream.frames[:, 3:], state)
    outputs = joined([first, second])
    assert not any(leaf.requires_grad for leaf in tree_leaves(outputs))
    assert_same(outputs, tree_map(torch.detach, expected), stream.tolerance)


@every(STUDENTS)
@pytest.mark.parametrize("last", [1, 3, FRAMES])
def test_the_last_outputs_are_the_tail_of_all_of_them(name, last):
    stream = build(name)
    _, state = stream.module(stream.frames[:, :2], stream.start())
    whole, whole_state = stream.module.outputs(stream.frames, state, deep=True)
    tail, tail_state = stream.module.outputs(stream.frames, state, last=last, deep=True)

    def cut(part: Tensor, axis: int) -> Tensor:
        return part.unflatten(axis, (STREAMS, -1)).narrow(axis + 1, FRAMES - last, last).flatten(axis, axis + 1)

    for field in ("person_logits", "boxes", "action_logits"):
        assert_same(getattr(tail, field), cut(getattr(whole, field), 1), stream.tolerance)
    for ours, theirs in zip(tail.maps, whole.maps, strict=True):
        assert_same(ours, cut(theirs, 0), 1e-10)
    assert_same(tail_state, whole_state, 1e-10)


@every(STUDENTS)
def test_the_student_gives_the_detections_of_its_outputs_with_a_time_axis(name):
    stream = build(name)
    detections, _ = stream.module(stream.frames, stream.start())
    outputs, _ = stream.module.outputs(stream.frames, stream.start())
    folded = tree_map(lambda x: x.flatten(0, 1), detections)
    assert_same(folded, outputs.detections, 0)
    assert detections.boxes.shape[:2] == (STREAMS, FRAMES)


@every(STUDENTS)
def test_a_state_for_other_frames_or_streams_is_refused(name):
    module = build(name).module
    state = module.initial_state(2, (64, 64), dtype=torch.float64)
    with pytest.raises(ValueError, match=r"initial_state\(batch_size, frame_size\)"):
        module(torch.zeros(2, 1, 3, 64, 96, dtype=torch.float64), state)  # the resolution changed in mid-stream
    with pytest.raises(ValueError, match=r"frames need \(3, 4, 4, 8\)"):
        module(torch.zeros(3, 1, 3, 64, 64, dtype=torch.float64), state)
    upright = module.initial_state(2, (128, 64), dtype=torch.float64)
    with pytest.raises(ValueError, match=r"frames need \(2, 4, 8, 8\)"):  # as many patches, in other places
        module(torch.zeros(2, 1, 3, 64, 128, dtype=torch.float64), upright)
    with pytest.raises(ValueError, match="multiples of 32"):
        module(torch.zeros(2, 1, 3, 64, 80, dtype=torch.float64), state)


@every(MODULES)
def test_a_state_of_another_size_is_an_error(name):
    stream = build(name)
    for state in (stream.start(3), stream.module.initial_state(STREAMS, PATCHES + 1, dtype=torch.float64)):
        with pytest.raises(RuntimeError, match=r"[Ss]ize"):
            stream.module(stream.frames, state)


@pytest.mark.parametrize("last", [0, -1, FRAMES + 1])
def test_asking_for_more_frames_than_there_are_is_refused(last):
    stream = build("student_dsta")
    with pytest.raises(ValueError, match="last"):
        stream.module.outputs(stream.frames, stream.start(), last=last)


def test_every_kind_of_student_is_in_this_file():
    students = [build() for build in STUDENTS.values()]
    assert all(isinstance(student, StreamingDetector) for student in students)
    attentions = [student.trunk.blocks[0].attention for student in students]
    assert {a.mode for a in attentions if isinstance(a, TemporalShiftAttention)} == {"channel", "concat_kv"}
    assert any(isinstance(attention, DecomposedAttention) for attention in attentions)
    assert {student.memory.size.frames for student in students} == {0, 3, 4}
    assert {student.memory.size.stride for student in students} == {1, 2}
    assert {student.memory.keyframe_age for student in students} == {0, 1, 2}
    assert {student.memory.size.keep_rate for student in students} >= {0.5, 1.0}
    assert {student.num_actors for student in students} == {None, 2}
    assert {student.head.decoder.context for student in students} == {"refined", "read", "none"}
    assert {student.head.decoder.temporal_roi for student in students} == {True, False}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TemporalShiftAttention(DIM, 2, PATCHES, shift_rate=0.0), "shift_rate must be above 0"),
        (lambda: TemporalShiftAttention(DIM, 2, PATCHES, shift_rate=1.5), "at most 1"),
        (lambda: TemporalShiftAttention(DIM, 3, PATCHES), "num_heads=3"),
        (lambda: tiny_student("dsta", window=-1), "frames=0"),
        (lambda: tiny_student("dsta", memory_keep_rate=0.0), "keep_rate must be above 0"),
    ],
)
def test_impossible_sizes_are_refused_at_construction(build, message):
    with pytest.raises(ValueError, match=message):
        build()
