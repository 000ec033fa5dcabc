"""Per-frame mean average precision: how well each moment of a stream is recognised (online action detection).

The rules are those of MiniROAD, LSTR and TeSTra, which are scikit-learn's. For each class the frames of all videos are
ranked by score; equal scores share one threshold. AP is the sum of precisions at the thresholds, weighted by the recall
that each of them adds (no interpolation). Background is not scored. Frames marked ambiguous are left out, and classes
without a positive frame are left out of the mean.

Calibrated AP (De Geest et al., "Online Action Detection", ECCV 2016) makes rare and frequent classes comparable. With w
negatives for each positive, precision becomes TP / (TP + FP / w).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


def frame_targets(
    times: Tensor, segments: Tensor, labels: Tensor, ambiguous: Tensor, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Turn segments into labels of frames: a frame shows an action if ``start <= time < end`` at its middle.

    This recipe is part of the protocol: published ones round chunks of frames differently, which moves the result.

    Frames at 0, 1, 2, 3 s and an action from 1 s to 3 s: frames 1 and 2 are positive.

    Args:
        times: (T,) seconds.
        segments: (n, 2) seconds.
        labels: (n,) int.
        ambiguous: (m, 2) seconds, spans that are not scored.
        num_classes: K.

    Returns:
        (T, K) bool, and (T,) bool: whether the frame is ambiguous.
    """

    def inside(spans: Tensor) -> Tensor:
        return (times[:, None] >= spans[:, 0]) & (times[:, None] < spans[:, 1])  # (T, n)

    targets = torch.zeros(len(times), num_classes, dtype=torch.int64, device=times.device)
    targets.index_add_(1, labels, inside(segments).long())
    return targets > 0, inside(ambiguous).any(dim=1)


def average_precision(scores: np.ndarray, positives: np.ndarray) -> tuple[float, float]:
    """AP and calibrated AP of one class over N frames; NaN without a positive frame.

    Scores are 0.9, 0.8, 0.8, 0.1; the second and the last are positive. The thresholds 0.9, 0.8, 0.1 have precision 0,
    1/3, 1/2 and recall 0, 1/2, 1, so AP is (1/3 + 1/2) / 2. There is one negative for each positive, so calibrated AP
    is the same.

    Args:
        scores: (N,) float.
        positives: (N,) bool.
    """
    total = np.count_nonzero(positives)
    if not total:
        return np.nan, np.nan
    order = np.argsort(-scores, kind="stable")
    last_of_ties = np.flatnonzero(np.r_[np.diff(scores[order]) != 0, True])
    true = np.cumsum(positives[order])[last_of_ties]
    false = last_of_ties + 1 - true
    gained = np.diff(true, prepend=0) / total
    negatives = max(len(scores) - total, 1)  # without any, no frame is false and w does not matter
    balanced = false * total / negatives
    return float((gained * true / (true + false)).sum()), float((gained * true / (true + balanced)).sum())


class PerFrameMeanAveragePrecision(Metric):
    """Per-frame mAP and calibrated mAP over all frames that ``update`` has seen; see the module's docstring.

    Args:
        num_classes: number of columns K of scores and targets.
        background: column of a background class, which is not scored; None where there is none.

    Every frame is passed exactly once: leave out padding, and what overlapping windows or a distributed sampler repeat.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    protocol = "per-frame mAP (scikit-learn's AP, ambiguous frames left out)"
    """Name of the protocol, as printed beside a number."""

    scores: list[Tensor]
    targets: list[Tensor]
    num_ignored: Tensor

    def __init__(self, num_classes: int, background: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        if background is not None and not 0 <= background < num_classes:
            raise ValueError(f"background must be a column 0..{num_classes - 1} or None, got {background}")
        self.num_classes = num_classes
        self.background = background
        self.add_state("scores", default=[], dist_reduce_fx="cat")
        self.add_state("targets", default=[], dist_reduce_fx="cat")
        self.add_state("num_ignored", default=torch.tensor(0), dist_reduce_fx="sum")
        self.reset()

    def reset(self) -> None:
        """Forget all frames. Both lists start with an empty tensor: a rank without a frame gathers the right shape."""
        super().reset()
        empty = torch.zeros(0, self.num_classes, dtype=torch.float64, device=self.device)
        self.scores.append(empty)
        self.targets.append(empty.bool())

    def update(self, scores: Tensor, targets: Tensor, ignore: Tensor | None = None) -> None:
        """Add frames.

        Args:
            scores: (N, K), higher is surer; any monotone scale.
            targets: (N, K) multi-hot.
            ignore: (N,) bool, frames that are ambiguous or padding.
        """
        for name, value in {"scores": scores, "targets": targets}.items():
            if value.ndim != 2 or value.shape[1] != self.num_classes:
                raise ValueError(f"{name} must be (N, {self.num_classes}), got {tuple(value.shape)}")
        ignore = torch.zeros(len(scores), dtype=torch.bool) if ignore is None else ignore
        if not len(scores) == len(targets) == len(ignore):
            raise ValueError(f"{len(scores)} frames have scores, {len(targets)} targets, {len(ignore)} an ignore flag")
        ignore = ignore.to(device=self.device, dtype=torch.bool)
        kept = scores.detach().to(device=self.device, dtype=torch.float64)[~ignore]
        if not torch.isfinite(kept).all():
            raise ValueError("scores have NaN or infinite values")
        self.scores.append(kept)
        self.targets.append(targets.to(self.device)[~ignore] > 0)
        self.num_ignored += ignore.sum()

    def compute(self) -> dict[str, Any]:
        """The result over all frames.

        Returns:
            ``map``, ``calibrated_map``: scalar fractions, NaN without a positive frame. ``map_per_class``,
            ``calibrated_map_per_class``: (K',), NaN for classes without one. ``classes``: (K',) their columns, the
            background left out. ``num_frames``: frames scored. ``num_ignored``: frames left out. ``num_positives``:
            pairs of frame and class. ``explanation``: in words why ``map`` is 0 or NaN, otherwise empty.
        """
        classes = [column for column in range(self.num_classes) if column != self.background]
        scores = dim_zero_cat(self.scores).cpu().double().numpy()
        targets = dim_zero_cat(self.targets).cpu().numpy()
        found = [average_precision(scores[:, column], targets[:, column]) for column in classes]
        plain, calibrated = np.asarray(found, dtype=np.float64).reshape(-1, 2).T
        seen = ~np.isnan(plain)
        mean, calibrated_mean = (ap[seen].mean() if seen.any() else np.nan for ap in (plain, calibrated))
        return {
            "map": torch.tensor(mean, dtype=torch.float64, device=self.device),
            "calibrated_map": torch.tensor(calibrated_mean, dtype=torch.float64, device=self.device),
            "map_per_class": torch.tensor(plain, device=self.device),
            "calibrated_map_per_class": torch.tensor(calibrated, device=self.device),
            "classes": torch.tensor(classes, dtype=torch.int64, device=self.device),
            "num_frames": torch.tensor(len(scores), device=self.device),
            "num_ignored": self.num_ignored.clone(),
            "num_positives": torch.tensor(int(targets[:, classes].sum()), device=self.device),
            "explanation": "" if seen.any() else _explain_nothing(len(scores), int(self.num_ignored)),
        }


def _explain_nothing(num_frames: int, num_ignored: int) -> str:
    """Return in words why there is no result. The mean is never 0: a positive frame ranked last has a precision."""
    if not num_frames:
        return f"no frame: all {num_ignored} are ambiguous" if num_ignored else "no frame was passed"
    return f"no ground truth: none of {num_frames} frames shows a class that is scored"
