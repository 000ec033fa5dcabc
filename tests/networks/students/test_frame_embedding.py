"""Each frame embedded with the one before it: the teacher's tubelets, one frame at a time."""

from __future__ import annotations

import pytest
import torch

from lightning_modules.networks.detection.vit import TubeletEmbedding
from lightning_modules.networks.students.frame_embedding import FramePairEmbedding

DIM, PATCH, SIDE, FRAMES = 8, 4, 16, 6


@pytest.fixture
def frames() -> torch.Tensor:
    return torch.randn(2, FRAMES, 3, SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def embedding() -> FramePairEmbedding:
    torch.manual_seed(1)
    return FramePairEmbedding(DIM, PATCH, (SIDE // PATCH, SIDE // PATCH)).double()


def stream(embedding, frames, lengths):
    state, outputs = embedding.initial_state(len(frames), dtype=frames.dtype), []
    for chunk in frames.split(lengths, dim=1):
        tokens, state = embedding(chunk, state)
        outputs.append(tokens)
    return torch.cat(outputs, dim=1), state


def test_every_frame_has_the_tokens_of_the_tubelet_that_ends_with_it(embedding, frames):
    teacher = TubeletEmbedding(DIM, PATCH).double()
    teacher.load_state_dict(embedding.state_dict())
    tokens, _ = stream(embedding, frames, [FRAMES])
    for t in range(FRAMES):
        tubelet = frames[:, [max(t - 1, 0), t]].transpose(1, 2)  # the first frame stands in for its predecessor
        torch.testing.assert_close(tokens[:, t], teacher(tubelet)[:, 0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("lengths", [[1] * FRAMES, [2, 4], [5, 1]])
def test_any_split_gives_the_same_tokens_and_the_same_state(embedding, frames, lengths):
    whole, last = stream(embedding, frames, [FRAMES])
    pieces, state = stream(embedding, frames, lengths)
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(state, last, rtol=0, atol=1e-12)


def test_a_still_scene_has_the_same_tokens_in_every_frame(embedding, frames):
    tokens, _ = stream(embedding, frames[:, :1].repeat(1, FRAMES, 1, 1, 1), [1, FRAMES - 1])
    torch.testing.assert_close(tokens, tokens[:, :1].expand_as(tokens), rtol=0, atol=1e-12)


def test_a_lane_that_starts_later_does_not_see_what_was_there_before(embedding, frames):
    _, state = stream(embedding, frames, [FRAMES])
    fresh = embedding.initial_state(2, dtype=frames.dtype)
    tokens, _ = embedding(frames[:, :1], state._replace(filled=fresh.filled))
    torch.testing.assert_close(tokens, embedding(frames[:, :1], fresh)[0], rtol=0, atol=0)
