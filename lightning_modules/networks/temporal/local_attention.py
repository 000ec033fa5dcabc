"""Attention of every step in time to its neighbours, with memory linear in the length."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FEWEST_QUERIES = 64
"""Queries of a piece: fewer would make many small products, more would read many keys that the window leaves out."""


def local_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, window: int) -> Tensor:
    """Softmax attention of each step to the ``window`` steps around it, as far as ``mask`` lets them be read.

    The steps are cut into pieces of queries, each with the keys that its window reaches. All pieces form the batch of
    one call of torch's fused attention. A step with nothing to read reads itself.

    Shapes: query, key, value (B, H, T, D); mask (B, T) bool, True where a key may be read; window odd; returns
    (B, H, T, D).
    """
    heads, length = query.shape[1:3]
    reach = window // 2
    piece = min(length, max(FEWEST_QUERIES, window))
    num_pieces = -(-length // piece)
    tail, span = num_pieces * piece - length, piece + 2 * reach

    queries = F.pad(query, (0, 0, 0, tail)).unflatten(2, (num_pieces, piece))  # (B, H, N, piece, D)
    keys, values = (
        F.pad(part, (0, 0, reach, reach + tail)).unfold(2, span, piece).transpose(-2, -1) for part in (key, value)
    )
    readable = F.pad(mask, (reach, reach + tail)).unfold(1, span, piece)  # (B, N, span)
    rows, columns = torch.arange(piece, device=mask.device), torch.arange(span, device=mask.device)
    offset = columns - rows[:, None] - reach  # how many steps the key comes after the query
    # Nothing to read would be a softmax over nothing, which is NaN.
    allowed = (readable[:, :, None] & (offset.abs() <= reach)) | (offset == 0)

    queries, keys, values = (part.transpose(1, 2).flatten(0, 1) for part in (queries, keys, values))
    attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=allowed.flatten(0, 1)[:, None])
    attended = attended.unflatten(0, (-1, num_pieces)).transpose(1, 2)  # (B, H, N, piece, D)
    return attended.reshape(-1, heads, num_pieces * piece, value.shape[-1])[:, :, :length]
