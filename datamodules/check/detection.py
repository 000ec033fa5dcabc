"""A look through the data of a detection experiment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datamodules.annotations.mistakes import Mistake
from datamodules.annotations.source import AnnotatedVideo
from datamodules.check.contact_sheet import draw_contact_sheet, require_picture_ending
from datamodules.check.report import Report, remark_on_absent_videos, remark_on_classes
from datamodules.check.videos import in_train_and_elsewhere, open_video, splits_of
from datamodules.detection import DetectionDataModule
from datamodules.files import whole_path
from datamodules.frames.store import DecodedFrames, FrameStore
from datamodules.sampling.indexing import keyframes_on_grid
from datamodules.sampling.windows import TimedVideo, off_the_video, time_video

OUTSIDE_PIXELS = 2.0
"""Corners may lie so far outside the frame: tools count pixels from 0 or from 1, and round."""
SMALLEST_PIXELS = 2.0
"""Data whose boxes are all smaller than this hold fractions that were taken for pixels."""
UPPER_LEFT = 2 / 3
"""Data whose boxes all end before this fraction of width and height may belong to larger frames."""
ENOUGH_BOXES = 20
"""Boxes needed for that remark."""


def check_detection(datamodule: DetectionDataModule, page: Path | None, page_clips: int, every_frame: bool) -> Report:
    """Read all annotation, open all videos and draw a page of them; arguments as of ``check_data``."""
    if page is not None:
        require_picture_ending(page)
    source = datamodule.source
    source.mistakes = []
    source.prepare()
    report = Report(type(source).__name__, source.class_names(), mistakes=source.mistakes)
    store = DecodedFrames(datamodule.store.scale)  # a cache would be filled first
    opened: dict[str, list[TimedVideo]] = {}
    for split, videos in splits_of(source, report):
        opened[split] = _timed(split, videos, store, report, every_frame)
        _count(split, opened[split], datamodule.evaluation_grid, report)
        _judge_boxes(split, opened[split], report)
        _judge_lengths(split, opened[split], datamodule, report)
    files = {split: {video.video_id: video.path for video in videos} for split, videos in opened.items()}
    report.mistakes += in_train_and_elsewhere(files)
    remark_on_absent_videos(report)
    remark_on_classes(report)
    if page is not None:
        stride = max(datamodule.window.stride, 1)
        drawn = draw_contact_sheet(opened, store, report.class_names, stride, page_clips, report.mistakes)
        if drawn is not None:
            with whole_path(page) as unfinished:
                drawn.save(unfinished)
            report.page = page
    return report


def _timed(
    split: str, videos: Sequence[AnnotatedVideo], store: FrameStore, report: Report, every_frame: bool
) -> list[TimedVideo]:
    """Open videos and give annotated moments their frames, as training does; without those that have none."""
    from tqdm import tqdm

    timed = []
    for video in tqdm(videos, desc=f"{split} videos", unit="video", leave=False):
        facts = open_video(video.path, store, every_frame, report.mistakes)
        if facts is None:
            continue
        seconds = np.asarray([keyframe.timestamp for keyframe in video.keyframes], np.float64)
        off = off_the_video(seconds, facts.times)
        if off.any():
            report.mistakes.append(
                Mistake(
                    "videos with time stamps outside them",
                    video.video_id,
                    f"{off.sum()} of {len(off)}, such as {seconds[off][0]:.2f} s, but its frames span "
                    f"{facts.times[0]:.2f} s to {facts.times[-1]:.2f} s",
                    "time stamps count seconds from the start of the file, or from start_seconds",
                )
            )
        kept = tuple(keyframe for keyframe, bad in zip(video.keyframes, off.tolist(), strict=True) if not bad)
        timed.append(time_video(video._replace(keyframes=kept), store))
        if len(shared := timed[-1].shared_moments):
            report.remarks.append(
                Mistake(
                    "videos with moments that share a frame",
                    video.video_id,
                    f"{len(shared)} of {len(timed[-1].frames)}, such as {shared[0]:.3f} s",
                    "nothing is trained on the later ones; give rows of one frame the same time",
                )
            )
    return timed


def _count(split: str, videos: Sequence[TimedVideo], stride: int, report: Report) -> None:
    boxes = sum(len(boxes) for video in videos for boxes in video.boxes)
    labels = np.zeros(len(report.class_names), np.int64)
    idle = scored = scored_boxes = 0
    for video in videos:
        for of_keyframe in video.labels:
            labels += of_keyframe.sum(axis=0, dtype=np.int64)
            idle += int((of_keyframe.sum(axis=1) == 0).sum())
        on_grid = keyframes_on_grid(video.frames, stride, len(video.facts.times))[:, 1]
        scored += len(on_grid)
        scored_boxes += sum(len(video.boxes[position]) for position in on_grid.tolist())
    report.labels[split] = labels
    report.counts[split] = {
        "videos": len(videos),
        "frames": sum(len(video.facts.times) for video in videos),
        "annotated frames": sum(len(video.frames) for video in videos),
        f"of them at stride {stride}": scored,
        "boxes": boxes,
        "boxes without action": idle,
    }
    if boxes == 0:
        report.mistakes.append(
            Mistake(
                "splits without boxes",
                split,
                f"{len(videos)} videos, {report.counts[split]['annotated frames']} annotated frames",
                "compare the names in the annotation, in the lists of videos and on disk",
            )
        )
    elif scored_boxes == 0:
        report.mistakes.append(
            Mistake("splits without a box on the stride's grid", split, f"{boxes} boxes, none of them scored")
        )


def _judge_boxes(split: str, videos: Sequence[TimedVideo], report: Report) -> None:
    """Report boxes that lie where those of a wrong unit or frame size would, in pixels of the original videos."""
    reach, largest, count = np.zeros(2), np.zeros(2), 0
    for video in videos:
        if not any(map(len, video.boxes)):
            continue
        height, width = video.facts.original_size
        size = np.asarray([width, height], np.float64)
        numbers = np.repeat(np.arange(len(video.boxes)), [len(boxes) for boxes in video.boxes])
        corners = np.concatenate(video.boxes).astype(np.float64)  # (n, 4)
        low, high = corners[:, :2], corners[:, 2:]
        report.mistakes += _wrong_boxes(
            "videos with boxes outside their frames",
            video,
            numbers,
            corners,
            ((low * size < -OUTSIDE_PIXELS) | ((high - 1) * size > OUTSIDE_PIXELS)).any(axis=1),
            "corners are fractions of the frame, from 0 to 1; pixels must be those of the video as it is on disk",
        )
        report.mistakes += _wrong_boxes(
            "videos with boxes without area",
            video,
            numbers,
            corners,
            (high <= low).any(axis=1),
            "corners are x1,y1,x2,y2 with x1<x2, y1<y2",
        )
        reach = np.maximum(reach, high.max(axis=0))
        largest = np.maximum(largest, ((high - low) * size).max(axis=0))
        count += len(corners)
    if count and (largest < SMALLEST_PIXELS).all():
        report.mistakes.append(
            Mistake(
                "splits with boxes of no size",
                split,
                f"{count} boxes, none larger than {largest[0]:.2f} x {largest[1]:.2f} pixels",
                "are they fractions that are read as pixels? set box_units to relative",
            )
        )
    elif count >= ENOUGH_BOXES and (reach < UPPER_LEFT).all():
        report.remarks.append(
            Mistake(
                "splits with boxes in the upper left of the frames alone",
                split,
                f"none of {count} reaches beyond {reach[0]:.2f} of the width and {reach[1]:.2f} of the height",
                "pixels of smaller frames than those on disk look like this; the page shows it",
            )
        )


def _wrong_boxes(
    kind: str, video: TimedVideo, numbers: np.ndarray, corners: np.ndarray, wrong: np.ndarray, way_out: str
) -> list[Mistake]:
    """Return one mistake for the video, if any box is wrong."""
    if not wrong.any():
        return []
    first = int(np.flatnonzero(wrong)[0])
    box = ", ".join(f"{value:.3f}" for value in corners[first])
    moment = video.timestamps[numbers[first]]
    return [Mistake(kind, video.video_id, f"{wrong.sum()} of {len(wrong)}, such as {box} at {moment:.2f} s", way_out)]


def _judge_lengths(split: str, videos: Sequence[TimedVideo], datamodule: DetectionDataModule, report: Report) -> None:
    window = datamodule.window
    span = (window.past + window.future - 1) * window.stride + 1
    report.remarks += [
        Mistake(
            f"{split} videos shorter than a clip of {span} frames",
            video.video_id,
            f"{len(video.facts.times)} frames",
            "their first and last frames are repeated; a smaller frame_stride or fewer frames would fit",
        )
        for video in videos
        if len(video.facts.times) < span
    ]
