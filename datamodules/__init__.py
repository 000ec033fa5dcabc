"""Videos and their annotation, as batches.

What a config may name can be imported from here, and is loaded when it is first asked for.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "annotations.activitynet": ["ActivityNet"],
        "annotations.ava": ["Ava"],
        "annotations.composed": ["ComposedJHMDB"],
        "annotations.features": ["FeatureFolder"],
        "annotations.few_labels": ["FewLabels"],
        "annotations.jhmdb": ["JHMDB"],
        "annotations.own_videos": ["OwnVideos"],
        "annotations.thumos14": ["Thumos14"],
        "annotations.ucf101_24": ["UCF101_24"],
        "clip": ["ClipDataModule"],
        "flow.methods": ["DisFlow", "RaftFlow", "Tvl1Flow"],
        "predict": ["PredictDataModule"],
        "puppets": ["Puppets"],
        "puppets.segments": ["PuppetSegments"],
        "segments": ["SegmentDataModule"],
        "stream": ["StreamDataModule"],
    },
)
