"""A student's start from the weights of its teacher."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ..students.detector import StreamingDetector
from .loading import load_exactly

_DEEP = re.compile(r"head\.(localizer\.stages|decoder\.blocks)\.(\d+)\.")
_ATTENTION = re.compile(r"^backbone\.(blocks\.\d+)\.(norm1|attn)\.")


@torch.no_grad()
def student_from_teacher(student: StreamingDetector, teacher: Mapping[str, Tensor]) -> None:
    """Start a student from its teacher's ``state_dict``: copy every weight that has a place in it.

    The embedding reads the newest two frames with the teacher's tubelet kernel. A student with fewer refinement stages
    or decoder blocks takes the first ones, since each was trained to give boxes or actions by itself. One with fewer
    proposals takes them at equal distances. Parts that the teacher lacks (LSTM, gates, codes of age and of the previous
    frame) keep their own start.

    Raises:
        ValueError: where the two do not have the same sizes otherwise; it lists the parameters.
    """
    head = student.head
    depths = {"localizer.stages": len(head.localizer.stages), "decoder.blocks": len(head.decoder.blocks)}
    weights = {}
    for key, value in teacher.items():
        if (deep := _DEEP.match(key)) and int(deep[2]) >= depths[deep[1]]:
            continue
        if key.startswith("head.localizer.proposal_"):
            value = value[_every_so_many(len(value), student.num_proposals)]
        key = re.sub(_ATTENTION, r"backbone.\1.attention.\2.", key)
        weights[key.replace("backbone.", "trunk.", 1)] = value
    load_exactly(student, weights, sorted(student.new_parameters()))


def _every_so_many(there: int, wanted: int) -> list[int]:
    """``wanted`` of the numbers 0..there-1, evenly spread; all of them where more are wanted than there are."""
    return [number * there // wanted for number in range(wanted)] if wanted < there else list(range(there))
