"""The smallest head and backbone that keep to the interfaces of temporal detectors."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.networks.temporal.backbones.segment_backbone import SegmentBackbone
from lightning_modules.networks.temporal.heads.segment_head import ScoredSegments, SegmentHead


class StepOutputs(NamedTuple):
    logits: Tensor  # (B, T', K)
    reach: Tensor  # (B, T', 2), distance from the middle of a feature to start and end
    mask: Tensor  # (B, T')


class StepHead(SegmentHead[StepOutputs]):
    """Each feature says what is going on, and since when until when."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.in_channels, self.num_classes = in_channels, num_classes
        self.layer = nn.Conv1d(in_channels, num_classes + 2, 1)

    def forward(self, features, mask):
        values = self.layer(features).transpose(1, 2)
        return StepOutputs(values[..., 2:], F.softplus(values[..., :2]), mask)

    def loss(self, outputs, segments, labels):
        middles = torch.arange(outputs.mask.shape[1], device=outputs.mask.device) + 0.5
        truth = torch.zeros_like(outputs.logits)
        reach = outputs.reach.new_zeros(())
        for row, (ends, names) in enumerate(zip(segments, labels, strict=True)):
            for (start, end), label in zip(ends, names, strict=True):
                inside = (middles >= start) & (middles < end) & outputs.mask[row]
                truth[row, inside, label] = 1
                wanted = torch.stack([middles[inside] - start, end - middles[inside]], -1)
                reach = reach + (outputs.reach[row, inside] - wanted).abs().sum() / 10
        classes = F.binary_cross_entropy_with_logits(outputs.logits, truth, reduction="none")[outputs.mask].mean()
        return {"total": classes + reach, "classes": classes, "reach": reach}

    def imitation(self, outputs, teacher):
        soft = F.binary_cross_entropy_with_logits(outputs.logits, teacher.logits.sigmoid(), reduction="none")
        return {
            "classes": soft[outputs.mask].mean(),
            "segments": (outputs.reach - teacher.reach).abs()[outputs.mask].mean(),
        }

    def decode(self, outputs, score_threshold, max_segments):
        found = []
        for logits, reach, mask in zip(*outputs, strict=True):
            scores = logits.sigmoid() * mask[:, None]
            place, label = (scores > score_threshold).nonzero(as_tuple=True)
            values = scores[place, label]
            best = values.argsort(descending=True)[:max_segments]
            place, label = place[best], label[best]
            ends = torch.stack([place + 0.5 - reach[place, 0], place + 0.5 + reach[place, 1]], -1)
            found.append(ScoredSegments(ends, values[best], label))
        return found


class MeanColour(SegmentBackbone):
    """The mean of a frame's pixels, ``step_stride`` frames at a time, through one linear layer."""

    def __init__(self, in_channels: int = 3, out_channels: int = 8, step_stride: int = 1) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.step_stride = in_channels, out_channels, step_stride
        self.layer = nn.Linear(in_channels, out_channels)

    def forward(self, steps, mask):
        colour = steps if steps.dim() == 3 else steps.mean((-2, -1))
        return self.layer(colour.unflatten(1, (-1, self.step_stride)).mean(2)).transpose(1, 2)
