"""Tiny networks with weights drawn so that every part of them matters."""

from __future__ import annotations

from lightning_modules.networks.evad import EvadTeacher
from lightning_modules.networks.student import StreamingDetector
from results.benchmarks.random_weights import randomise

CONFIG = {
    "num_classes": 4,
    "num_frames": 8,
    "pretrain_size": 64,
    "dim": 24,
    "depth": 5,
    "num_heads": 3,
    "patch_size": 16,
    "keep_rates": {1: 0.8, 3: 0.75},
    "enhanced_weight": 4.0,
    "key_order": "position",
    "pyramid_layers": (0, 2, 3, 4),
    "head_dim": 16,
    "num_proposals": 6,
    "num_stages": 3,
    "localizer_heads": 2,
    "dynamic_dim": 5,
    "localizer_hidden": 20,
    "localizer_roi_size": 3,
    "decoder_dim": 12,
    "decoder_depth": 2,
    "decoder_heads": 2,
    "decoder_hidden": 10,
    "decoder_roi_size": 2,
    "roi_extension": (0.4, 0.2),
}
"""Arguments of a small ``EvadTeacher``: 4 slots, a 4 x 4 position grid."""


def tiny_teacher(seed: int = 0, **changes) -> EvadTeacher:
    """A random teacher of ``CONFIG`` with ``changes``, in eval mode."""
    return randomise(EvadTeacher(**(CONFIG | changes)), seed).eval()


STUDENT = {
    "num_classes": 3,
    "num_frames": 4,
    "pretrain_size": 64,
    "window": 3,
    "memory_keep_rate": 0.5,
    "dim": 8,
    "depth": 2,
    "num_heads": 2,
    "patch_size": 16,
    "mlp_ratio": 2.0,
    "pyramid_layers": (0, 0, 1, 1),
    "head_dim": 8,
    "num_proposals": 4,
    "num_stages": 2,
    "localizer_heads": 2,
    "dynamic_dim": 3,
    "localizer_hidden": 8,
    "localizer_roi_size": 2,
    "decoder_dim": 8,
    "decoder_depth": 2,
    "decoder_heads": 2,
    "decoder_hidden": 8,
    "decoder_roi_size": 2,
}
"""Arguments of the smallest ``StreamingDetector`` in which all of its parts have something to do."""


def tiny_student(temporal: str, **changes) -> StreamingDetector:
    """A student of ``STUDENT`` with ``changes``, as constructed, in eval mode."""
    return StreamingDetector(temporal, **(STUDENT | changes)).eval()
