"""A student's start from the weights of its teacher."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ..students.detector import StreamingDetector
from .loading import load_exactly
from .narrowing import evenly, narrowed

_HEAD_PART = re.compile(r"head\.(localizer\.stages|decoder\.blocks)\.(\d+)\.")
_BLOCK = re.compile(r"backbone\.blocks\.(\d+)\.")
_ATTENTION = re.compile(r"^backbone\.(blocks\.\d+)\.(norm1|attn)\.")


@torch.no_grad()
def student_from_teacher(student: StreamingDetector, teacher: Mapping[str, Tensor]) -> None:
    """Start a student from its teacher's ``state_dict``: copy every weight that has a place in it.

    The embedding reads the newest two frames with the teacher's tubelet kernel. A student with fewer refinement stages
    or decoder blocks takes the first ones, since each was trained to give boxes or actions by itself. One with fewer
    proposals takes them at equal distances. A shallower trunk takes the teacher's first block, its last one, and others
    evenly spaced between them. A narrower student takes channels at equal distances, see ``narrowed``. Parts that the
    teacher lacks (LSTM, gates, codes of age and of the previous frame) keep their own start.

    Raises:
        ValueError: where the student is the larger of the two, or of other classes, patches or RoIs; it lists the
            parameters.
    """
    head, own = student.head, student.state_dict()
    depths = {"localizer.stages": len(head.localizer.stages), "decoder.blocks": len(head.decoder.blocks)}
    places = _places_of_blocks(teacher, student.size.depth)
    weights = {}
    for key, value in teacher.items():
        if (part := _HEAD_PART.match(key)) and int(part[2]) >= depths[part[1]]:
            continue
        if key.startswith("head.localizer.proposal_"):
            value = value[evenly(len(value), student.num_proposals)]
        if block := _BLOCK.match(key):
            if int(block[1]) not in places:
                continue
            key = f"backbone.blocks.{places[int(block[1])]}.{key[block.end() :]}"
        key = re.sub(_ATTENTION, r"backbone.\1.attention.\2.", key)
        weights[key.replace("backbone.", "trunk.", 1)] = value
    load_exactly(student, narrowed(weights, own), sorted(student.new_parameters()))


def _places_of_blocks(teacher: Mapping[str, Tensor], depth: int) -> dict[int, int]:
    """Return which block of the teacher's trunk becomes which of a student's of ``depth``."""
    there = 1 + max(int(block[1]) for key in teacher if (block := _BLOCK.match(key)))
    if depth >= there:
        return {block: block for block in range(there)}
    if depth == 1:
        return {there - 1: 0}
    # The ends are the blocks that can least be done without.
    return {round(place * (there - 1) / (depth - 1)): place for place in range(depth)}
