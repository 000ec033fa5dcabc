"""Tiny networks with weights drawn so that every part of them matters."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from lightning_modules.networks.detection.context_decoder import ContextDecoder
from lightning_modules.networks.detection.evad import EvadTeacher
from lightning_modules.networks.detection.head import DetectionHead, HeadFactory
from lightning_modules.networks.detection.localizer import Localizer
from lightning_modules.networks.detection.vit import VideoViT
from lightning_modules.networks.layers.trunk_size import TrunkSize
from lightning_modules.networks.students.causal_attention import AttentionFactory
from lightning_modules.networks.students.context_memory import MemorySize
from lightning_modules.networks.students.decomposed_attention import DecomposedAttention
from lightning_modules.networks.students.detector import StreamingDetector
from lightning_modules.networks.students.frame_attention import FrameAttention
from lightning_modules.networks.students.temporal_shift import TemporalShiftAttention
from lightning_modules.networks.students.timing import Timing
from lightning_modules.networks.students.trunk import StreamingTrunk
from results.benchmarks.random_weights import randomise

ATTENTIONS: dict[str, type] = {"tsa": TemporalShiftAttention, "dsta": DecomposedAttention, "frame": FrameAttention}
PLACES = {
    "head_dim": ("localizer", "dim"),
    "num_proposals": ("localizer", "num_proposals"),
    "num_stages": ("localizer", "num_stages"),
    "localizer_heads": ("localizer", "num_heads"),
    "dynamic_dim": ("localizer", "dynamic_dim"),
    "localizer_hidden": ("localizer", "hidden_dim"),
    "localizer_roi_size": ("localizer", "roi_size"),
    "proposal_boxes": ("localizer", "proposal_boxes"),
    "roi_kernel": ("localizer", "roi_kernel"),
    "decoder_dim": ("decoder", "dim"),
    "decoder_depth": ("decoder", "depth"),
    "decoder_heads": ("decoder", "num_heads"),
    "decoder_mlp_ratio": ("decoder", "mlp_ratio"),
    "decoder_hidden": ("decoder", "hidden_dim"),
    "decoder_roi_size": ("decoder", "roi_size"),
    "decoder_drop_path_rate": ("decoder", "drop_path_rate"),
    "decoder_context": ("decoder", "context"),
    "roi_extension": ("decoder", "roi_extension"),
    "temporal_roi": ("decoder", "temporal_roi"),
    "shift_mode": ("attention", "mode"),
    "shift_rate": ("attention", "shift_rate"),
    "lstm_dim": ("attention", "lstm_dim"),
    "window": ("memory", "frames"),
    "memory_stride": ("memory", "stride"),
    "memory_keep_rate": ("memory", "keep_rate"),
    "look_ahead": ("timing", "look_ahead"),
    "boxes_from": ("timing", "boxes_from"),
    "keyframe_code": ("timing", "keyframe_code"),
    "keep_rates": ("backbone", "keep_rates"),
    "enhanced_weight": ("backbone", "enhanced_weight"),
    "key_order": ("backbone", "key_order"),
    "learned_positions": ("backbone", "learned_positions"),
    "drop_path_rate": ("backbone", "drop_path_rate"),
    "checkpoint_blocks": ("backbone", "checkpoint_blocks"),
    "num_classes": ("network", "num_classes"),
    "num_actors": ("network", "num_actors"),
}
"""Flat name of a setting -> the part that takes it and its name there; all others are the trunk's sizes."""

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
"""Flat settings of a small ``EvadTeacher``: 4 slots, a 4 x 4 position grid."""


def by_part(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Sort flat settings by the part that takes them."""
    parts: dict[str, dict[str, Any]] = {part: {} for part, _ in PLACES.values()} | {"size": {}}
    for name, value in settings.items():
        part, argument = PLACES.get(name, ("size", name))
        parts[part][argument] = value
    return parts


def head_of(parts: Mapping[str, Mapping[str, Any]]) -> HeadFactory:
    """Make a head as often as asked for."""
    decoder = partial(ContextDecoder, **parts["decoder"])
    return lambda tokens, num_classes: DetectionHead(tokens, num_classes, Localizer(**parts["localizer"]), decoder)


def vit_of(settings: Mapping[str, Any]) -> VideoViT:
    """Build an encoder from flat settings; those of other parts are passed over."""
    parts = by_part(settings)
    return VideoViT(TrunkSize(**parts["size"]), **parts["backbone"])


def teacher_of(settings: Mapping[str, Any]) -> EvadTeacher:
    """Build a teacher from flat settings."""
    parts = by_part(settings)
    return EvadTeacher(**parts["network"], backbone=vit_of(settings), head=head_of(parts))


def trunk_of(temporal: str | AttentionFactory, settings: Mapping[str, Any]) -> StreamingTrunk:
    """Build a trunk from flat settings; ``temporal`` is ``tsa``, ``dsta`` or what makes another attention."""
    parts = by_part(settings)
    attention = partial(ATTENTIONS[temporal] if isinstance(temporal, str) else temporal, **parts["attention"])
    return StreamingTrunk(TrunkSize(**parts["size"]), attention)


def student_of(temporal: str | AttentionFactory, settings: Mapping[str, Any]) -> StreamingDetector:
    """Build a student from flat settings, see ``trunk_of``."""
    parts, trunk = by_part(settings), trunk_of(temporal, settings)
    memory, timing = MemorySize(**parts["memory"]), Timing(**parts["timing"])
    return StreamingDetector(trunk=trunk, head=head_of(parts), memory=memory, timing=timing, **parts["network"])


def teacher_config(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a teacher of flat settings as a config does."""
    parts = by_part(settings)
    head = {"localizer": parts["localizer"], "decoder": parts["decoder"]}
    arguments = parts["network"] | {"backbone": parts["backbone"] | {"size": parts["size"]}, "head": head}
    return {"class_path": f"{EvadTeacher.__module__}.EvadTeacher", "init_args": arguments}


def student_config(temporal: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a student of flat settings as a config does."""
    parts = by_part(settings)
    attention = {"class_path": ATTENTIONS[temporal].__name__, "init_args": parts["attention"]}
    arguments = parts["network"] | {
        "trunk": {"size": parts["size"], "attention": attention},
        "head": {"localizer": parts["localizer"], "decoder": parts["decoder"]},
        "memory": parts["memory"],
        "timing": parts["timing"],
    }
    return {"class_path": f"{StreamingDetector.__module__}.StreamingDetector", "init_args": arguments}


def tiny_teacher(seed: int = 0, **changes: Any) -> EvadTeacher:
    """A random teacher of ``CONFIG`` with ``changes``, in eval mode."""
    return randomise(teacher_of(CONFIG | changes), seed).eval()


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
"""Flat settings of the smallest ``StreamingDetector`` in which all of its parts have something to do."""


def tiny_student(temporal: str | AttentionFactory, **changes: Any) -> StreamingDetector:
    """A student of ``STUDENT`` with ``changes``, as constructed, in eval mode."""
    return student_of(temporal, STUDENT | changes).eval()
