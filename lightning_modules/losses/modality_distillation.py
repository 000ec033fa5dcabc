"""Loss between the features of an RGB student and those of its motion teacher."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def feature_imitation(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Squared difference of layer-normed features, mean over channels and the features that are there.

    The first term of DCMD's motion loss (Lee et al., CVPR 2023, section 3). The norm is inferred: without it the scale
    of the teacher's features, which says nothing, would set the weight of the term.

    Args:
        student: (B, D, T'). teacher: the same. mask: (B, T') bool; nothing there is a zero.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"features of student and teacher differ in shape, {tuple(student.shape)} and {tuple(teacher.shape)}; "
            "give both networks the same dim, and backbones of the same step_stride"
        )
    here, there = (
        F.layer_norm(features.float().transpose(1, 2), features.shape[1:2]) for features in (student, teacher)
    )
    difference = (here - there).square().mean(-1)  # (B, T')
    return difference.masked_fill(~mask, 0).sum() / mask.sum().clamp(min=1)
