"""The streaming context memory's reading of past frames against plain loops over what it holds."""

import math

import numpy as np
import pytest
import torch

from lightning_modules.networks.detection.context_decoder import ContextDecoder
from lightning_modules.networks.detection.vit import EncodedClip
from lightning_modules.networks.layers.trunk_size import TokenLayout
from lightning_modules.networks.students.context_memory import ContextMemory, MemorySize, MemoryState
from tests.networks.detection.slow_evad import (
    extend_box,
    layer_norm,
    linear,
    mlp,
    position_codes,
    roi_align,
    tower,
    video_attention,
)
from tests.networks.tiny import randomise

DIM, GRID, SLOTS, WINDOW, KEPT = 12, (4, 6), 4, 6, 5
BOXES = torch.tensor([[[3.0, 2, 40, 60], [-20, 10, 130, 50], [50, 5, 60, 18]]])
SIZE = (50, 90)


def networks(keyframe_age: int = 0, temporal_roi: bool = True, **changes) -> tuple[ContextDecoder, ContextMemory]:
    tokens = TokenLayout(8, 16, SLOTS, 4, "middle", 4)
    decoder = ContextDecoder(
        tokens,
        4,
        dim=DIM,
        depth=2,
        num_heads=2,
        hidden_dim=10,
        roi_size=2,
        temporal_roi=temporal_roi,
    )
    memory = ContextMemory(MemorySize(WINDOW, **({"keep_rate": 0.2} | changes)), DIM, keyframe_age)
    return randomise(decoder), randomise(memory, seed=1)


def slow_read(newest, tokens, places, filled, weights, age_code, keyframe_age=0) -> np.ndarray:
    """Action logits (D, P, K) of one stream: every held frame in turn, what is not held left out."""
    patches = GRID[0] * GRID[1]
    codes = position_codes(SLOTS, 4, DIM, *GRID)
    held, stride = len(tokens), WINDOW // len(tokens)

    def slot_of(age: int) -> int:  # a slot is two frames
        return min(max(SLOTS // 2 - math.ceil((age - keyframe_age) / 2), 0), SLOTS - 1)

    canvases, sequence = [], []
    for entry in range(held - filled, held):
        slot = slot_of(stride * (held - entry))
        code = codes[slot] + age_code[entry]
        canvas = np.tile(weights["decoder.mask_token"][0, 0], (patches, 1))
        for token, place in zip(tokens[entry], places[entry], strict=True):
            canvas[place] = token
            sequence.append(token + code[place])
        canvases.append(canvas + code)
    canvases.append(newest + codes[slot_of(0)])
    sequence.extend(canvases[-1])
    for box in BOXES[0].double().numpy():
        box = extend_box(box, (0.4, 0.2), SIZE)
        maps = [canvas.T.reshape(DIM, *GRID) for canvas in canvases]
        sequence.append(np.mean([roi_align(grid, box, 2, 1 / 16).max(axis=(1, 2)) for grid in maps], axis=0))
    sequence, logits = np.array(sequence), []
    for number in range(2):
        block = f"decoder.blocks.{number}"
        normed = layer_norm(sequence, weights, f"{block}.norm1", 1e-6)
        sequence = sequence + video_attention(normed, weights, f"{block}.attn", 2)[0]
        sequence = sequence + mlp(layer_norm(sequence, weights, f"{block}.norm2", 1e-6), weights, f"{block}.mlp")
        logits.append(
            linear(tower(sequence[-3:], weights, f"{block}.act_module", 1), weights, f"{block}.action_logits")
        )
    return np.array(logits)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("keyframe_age", [0, 1, 2, 5])
def test_reading_the_memory_equals_plain_loops_over_the_frames_it_holds(stride, keyframe_age):
    decoder, memory = networks(stride=stride, keyframe_age=keyframe_age)
    held = WINDOW // stride
    filled = torch.tensor([0, 1, held - 1, held])
    streams, patches = len(filled), GRID[0] * GRID[1]
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randn(streams, held, KEPT, DIM, generator=generator)
    places = torch.rand(streams, held, patches, generator=generator).topk(KEPT).indices.sort(dim=-1).values
    newest = torch.randn(streams, patches, DIM, generator=generator)
    past = MemoryState(tokens, places, filled)
    boxes, sizes = BOXES.expand(streams, -1, -1), torch.tensor([SIZE] * streams)
    with torch.no_grad():
        context = memory.context(decoder, newest, past, GRID)
        ours = decoder(context, boxes, sizes, every_block=True)
        last = decoder(context, boxes, sizes)
    torch.testing.assert_close(last[0], ours[-1], rtol=1e-5, atol=1e-5)
    weights = {f"decoder.{key}": value.double().numpy() for key, value in decoder.state_dict().items()}
    age_code = memory.age_code.detach().double().numpy()
    for item in range(streams):
        slow = slow_read(
            newest[item].double().numpy(),
            tokens[item].double().numpy(),
            places[item].numpy(),
            int(filled[item]),
            weights,
            age_code,
            keyframe_age,
        )
        torch.testing.assert_close(ours[:, item].double(), torch.from_numpy(slow), rtol=1e-4, atol=1e-4)


def test_the_memory_keeps_the_most_attended_tokens_of_each_frame_in_order_of_place():
    memory = ContextMemory(MemorySize(2, keep_rate=0.5), DIM)
    tokens, received = torch.randn(1, 3, 4, DIM), torch.tensor([[[1, 9, 3, 7], [8, 2, 6, 4], [5, 1, 0, 9.0]]])
    before, after = memory(tokens, received, memory.initial_state(1, 4), last=2)
    assert after.places.tolist() == [[[0, 2], [0, 3]]] and after.filled.tolist() == [2]
    assert torch.equal(after.tokens[0], torch.stack([tokens[0, 1, [0, 2]], tokens[0, 2, [0, 3]]]))
    assert before.filled.tolist() == [1, 2], "what the second and the third frame find"
    assert before.places.tolist() == [[[0, 0], [1, 3]], [[1, 3], [0, 2]]]


def test_at_a_stride_a_frame_finds_those_that_are_so_many_and_twice_so_many_frames_older():
    memory = ContextMemory(MemorySize(4, 2, 1.0), DIM)
    tokens, received = torch.randn(1, 7, 4, DIM), torch.rand(1, 7, 4)
    before, after = memory(tokens, received, memory.initial_state(1, 4), last=4)
    assert before.filled.tolist() == [1, 2, 2, 2], "before frames 3, 4, 5 and 6"
    assert torch.equal(before.tokens[0, -1], tokens[0, 1])
    assert torch.equal(before.tokens[3], tokens[0, [2, 4]])
    assert torch.equal(after.tokens[0], tokens[0, 3:])


def test_every_second_frame_whole_and_the_answered_one_as_keyframe_read_as_the_teachers_clip_does():
    decoder, memory = networks(keep_rate=1.0, stride=2, keyframe_age=2)
    torch.nn.init.zeros_(memory.age_code)
    patches = GRID[0] * GRID[1]
    slots = torch.randn(2, SLOTS, patches, DIM, generator=torch.Generator().manual_seed(3))
    every_place = torch.arange(patches).expand(2, SLOTS - 1, -1)
    boxes, sizes = BOXES.expand(2, -1, -1), torch.tensor([SIZE] * 2)
    past = MemoryState(slots[:, :-1], every_place, torch.tensor([SLOTS - 1] * 2))
    streamed = decoder(memory.context(decoder, slots[:, -1], past, GRID), boxes, sizes, every_block=True)

    decoder.encoder_to_decoder = torch.nn.Identity()
    key = SLOTS // 2
    order = [key, *(slot for slot in range(SLOTS) if slot != key)]
    kept = torch.arange((SLOTS - 1) * patches).expand(2, -1)
    clip = EncodedClip(slots[:, order].flatten(1, 2), kept, (), (), (SLOTS, *GRID))
    torch.testing.assert_close(
        streamed, decoder(decoder.clip_context(clip), boxes, sizes, every_block=True), rtol=1e-5, atol=1e-5
    )


def test_without_temporal_roi_a_stream_pools_its_actors_in_the_newest_frame_alone():
    decoder, memory = networks(temporal_roi=False)
    past = memory.initial_state(1, GRID[0] * GRID[1])._replace(filled=torch.tensor([2]))
    newest = torch.randn(1, GRID[0] * GRID[1], DIM)
    context, other = (
        memory.context(decoder, newest, past._replace(tokens=torch.randn_like(past.tokens)), GRID) for _ in range(2)
    )
    assert context.canvas.shape[1] == 1 and context.slot_weights is None
    assert torch.equal(context.canvas, other.canvas) and not torch.equal(context.sequence, other.sequence)
    assert decoder(context, BOXES, torch.tensor([SIZE])).isfinite().all()


@pytest.mark.parametrize("stride", [0, 4])
def test_a_stride_that_does_not_divide_the_window_is_refused(stride):
    with pytest.raises(ValueError, match=f"stride={stride} must be at least 1 and divide its frames=6"):
        networks(stride=stride)


@pytest.mark.parametrize(("keep_rate", "patches", "kept"), [(1.0, 24, 24), (0.5, 24, 12), (0.5, 25, 13), (0.01, 24, 1)])
def test_the_share_kept_of_a_frame_rounds_up(keep_rate, patches, kept):
    memory = ContextMemory(MemorySize(1, keep_rate=keep_rate), DIM)
    assert memory.size.num_kept(patches) == kept
    assert memory.initial_state(2, patches).tokens.shape == (2, 1, kept, DIM)
