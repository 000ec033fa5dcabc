"""DataModules from flat settings, so that a test names only what it is about.

``clip_data(source, short_side=64, batch_size=2)`` puts each setting into the group that it belongs to.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from datamodules.clip import ClipDataModule
from datamodules.live.capture import LiveSettings
from datamodules.predict import PredictDataModule
from datamodules.sampling.transforms import ClipTransform
from datamodules.segments import SegmentDataModule, SegmentWindowSettings
from datamodules.settings import FrameSettings, KeyframeLoaderSettings, LoaderSettings, UnlabelledSettings
from datamodules.stream import StreamDataModule

SEGMENT_WINDOWS = {
    "window_steps": "steps",
    "train_windows": "train",
    "train_overlap": "train_overlap",
    "min_visibility": "min_visibility",
    "eval_window_steps": "eval_steps",
    "eval_overlap": "eval_overlap",
}


def grouped(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the ``init_args`` of a config with each of the flat settings in its group."""
    groups = {"frames": FrameSettings, "augmentation": ClipTransform, "loader": KeyframeLoaderSettings}
    place = {field.name: group for group, kind in groups.items() for field in fields(kind)}
    nested: dict[str, Any] = {}
    for key, value in settings.items():
        group, name = place.get(key), {"windows_per_epoch": "samples_per_epoch"}.get(key, key)
        if key in SEGMENT_WINDOWS:
            group, name = "windows", SEGMENT_WINDOWS[key]
        elif key == "windows_per_epoch":
            group = "loader"
        if group is None:
            nested[name] = value
        else:
            nested.setdefault(group, {})[name] = value
    return nested


def _taken(kind: type, settings: dict[str, Any]) -> dict[str, Any]:
    return {field.name: settings.pop(field.name) for field in fields(kind) if field.name in settings}


def _frames(settings: dict[str, Any]) -> FrameSettings:
    taken = _taken(FrameSettings, settings)
    if taken.get("cache") is not None:
        taken["cache"] = str(taken["cache"])
    return FrameSettings(**taken)


def clip_data(source: Any, *arguments: Any, **settings: Any) -> ClipDataModule:
    frames, augmentation = _frames(settings), ClipTransform(**_taken(ClipTransform, settings))
    loader = KeyframeLoaderSettings(**_taken(KeyframeLoaderSettings, settings))
    return ClipDataModule(source, *arguments, frames=frames, augmentation=augmentation, loader=loader, **settings)


def stream_data(source: Any, *arguments: Any, **settings: Any) -> StreamDataModule:
    frames, augmentation = _frames(settings), ClipTransform(**_taken(ClipTransform, settings))
    loader = KeyframeLoaderSettings(**_taken(KeyframeLoaderSettings, settings))
    given = {"folder": settings.pop("unlabelled", None), "share": settings.pop("unlabelled_share", None)}
    if any(value is not None for value in given.values()):
        settings["unlabelled"] = UnlabelledSettings(**{key: value for key, value in given.items() if value is not None})
    return StreamDataModule(source, *arguments, frames=frames, augmentation=augmentation, loader=loader, **settings)


def segment_data(source: Any, window_steps: int = 256, **settings: Any) -> SegmentDataModule:
    settings = {"window_steps": window_steps, "cache": None, "batch_size": 2} | settings
    settings["samples_per_epoch"] = settings.pop("windows_per_epoch", None)
    windows = SegmentWindowSettings(
        **{name: settings.pop(key) for key, name in SEGMENT_WINDOWS.items() if key in settings}
    )
    frames, augmentation = _frames(settings), ClipTransform(**_taken(ClipTransform, settings))
    loader = LoaderSettings(**_taken(LoaderSettings, settings))
    return SegmentDataModule(source, windows, frames=frames, augmentation=augmentation, loader=loader, **settings)


def predict_data(source: Any, *arguments: Any, **settings: Any) -> PredictDataModule:
    return PredictDataModule(source, *arguments, live=LiveSettings(**_taken(LiveSettings, settings)), **settings)
