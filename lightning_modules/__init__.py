"""Experiments: one LightningModule a file, thin; networks, losses and metrics in their own rooms.

What a config may name can be imported from here, and is loaded when it is first asked for.
"""

import lazy_loader

_NETWORKS = {
    "detection.evad": ["EvadTeacher"],
    "detection.head": ["DetectionHead"],
    "students.decomposed_attention": ["DecomposedAttention"],
    "students.detector": ["StreamingDetector"],
    "students.temporal_shift": ["TemporalShiftAttention"],
    "temporal.backbones.recurrent_features": ["RecurrentFeatures"],
    "temporal.backbones.shifted_image_backbone": ["ShiftedImageBackbone"],
    "temporal.backbones.stored_features": ["StoredFeatures"],
    "temporal.backbones.trunk_features": ["TrunkFeatures"],
    "temporal.backbones.video_vit_backbone": ["VideoViTBackbone"],
    "temporal.decomposed_detector": ["DecomposedDetector"],
    "temporal.frame_scores": ["FrameScores"],
    "temporal.heads.anchor_free_head": ["AnchorFreeHead"],
    "temporal.heads.boundary_matching_head": ["BoundaryMatchingHead"],
    "temporal.suppression": ["SegmentSuppression"],
    "temporal.temporal_detector": ["TemporalDetector"],
    "temporal.two_stream_detector": ["TwoStreamDetector"],
}

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "base": ["TrainingSettings"],
        "clip_detection": ["ClipDetectionModule"],
        "evaluation.detection_evaluator": ["DetectionSettings"],
        "exported_detection": ["ExportedDetectionModule"],
        "distillation_terms": ["ActionTerm", "AttentionTerm", "BoxTerm", "FeatureTerm"],
        "losses.detection": ["DetectionLoss"],
        "motion_distillation": ["MotionDistillationModule"],
        "online_detection": ["OnlineDetectionModule"],
        "optimisation": ["WarmupCosine", "WarmupSteps"],
        "runtimes.opening": ["ExportedStudent"],
        "stream_detection": ["StreamDetectionModule", "StreamSettings"],
        "stream_distillation": ["DistillationModule", "WeightingSettings"],
        "temporal_detection": ["SegmentSettings", "TemporalDetectionModule"],
        **{f"networks.{module}": names for module, names in _NETWORKS.items()},
    },
)
