"""The command ``analyse``: errors of saved detections, and their costs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from lightning.pytorch import LightningDataModule, Trainer
from tqdm import tqdm

from datamodules.errors import UserError

from ..analysis.of_boxes import TrueBoxes, analyse_boxes
from ..analysis.of_segments import analyse_segments
from ..analysis.of_tubes import TrueVideos, analyse_tubes
from ..analysis.pages import Picture, Section, write_page
from ..analysis.properties import PeopleOfFrame, Property, box_properties
from ..analysis.report import error_page, kinds_table
from ..analysis.summary import STEPS, Step, Summary
from ..metrics import segment_results, tube_results
from ..metrics.frame_ap import FrameMapSettings
from ..metrics.video_ap import VideoProtocol
from .score_boxes import rows_of_file

FURTHER_STEPS = 4
"""Reading, matching, kinds and pictures, beside those of the summary."""
Analysis = Callable[[Path, str, Step], tuple[Summary, list[Picture]]]


def analyse(
    trainer: Trainer,
    model: None,
    datamodule: LightningDataModule,
    predictions: Path,
    against: Path | None = None,
    split: Literal["val", "test"] = "test",
    metric: FrameMapSettings | None = None,
    video_protocol: VideoProtocol | None = None,
    iou_threshold: float = 0.5,
    tolerance_seconds: float = 0.01,
    num_pictures: int = 20,
    output: Path = Path("runs/analysis"),
    ckpt_path: str | None = None,
    weights_only: bool | None = None,
) -> None:
    """Explain the errors of saved detections, and what each kind costs.

    Writes a page of HTML that needs no network, and one of Markdown with its pictures.

    Args:
        predictions: file as for ``score``: a csv of boxes, or a json of tubes or segments.
        against: second file of predictions, compared with the first.
        split: split whose ground truth is used; ``val`` for files that ``validate`` saved.
        metric: protocol of frame mAP; what is not given of it is that of the config's model.
        video_protocol: protocol of video mAP; that of the config's model by default, otherwise ``act``.
        iou_threshold: least IoU of a hit, for tubes and segments; for boxes it is part of ``metric``.
        tolerance_seconds: largest distance of a box's time stamp from that of its keyframe.
        num_pictures: number of errors to draw, the costliest first.
        output: path of the pages, without ending.
        ckpt_path, weights_only: not used; accepted so that a run's ``config.yaml``, which has them, can be given.
    """
    files = [predictions] if against is None else [predictions, against]
    if not 0 < iou_threshold <= 1:
        raise UserError(f"must be in (0, 1], got {iou_threshold}", where="iou_threshold")
    if num_pictures < 0:
        raise UserError(f"must be at least 0, got {num_pictures}", where="num_pictures")
    names = list(datamodule.class_names)
    with tqdm(total=len(files) * (STEPS + FURTHER_STEPS) + 2, desc="ground truth", leave=False) as bar:

        def step(done: str) -> None:
            bar.set_description(done)
            bar.update()

        if hasattr(datamodule, "true_segments"):
            analysis = _of_segments(datamodule, split, iou_threshold, num_pictures)
        elif predictions.suffix == ".json":
            analysis = _of_tubes(datamodule, split, iou_threshold, video_protocol or "act", num_pictures)
        else:
            analysis = _of_boxes(datamodule, split, metric or FrameMapSettings(), tolerance_seconds, num_pictures)
            ids = datamodule.evaluated_classes
            names = names if ids is None else [names[index] for index in ids]
        step("ground truth")
        found = [analysis(file, name, step) for file, name in zip(files, names_of(files), strict=True)]
        summaries = [summary for summary, _ in found]
        page = error_page(
            f"Errors of {' and '.join(each.name for each in summaries)}",
            summaries,
            names,
            _error_sections(found),
            _command(files, split),
        )
        written = write_page(page, output.parent, output.name)
        step("pages")
    for summary in summaries:
        print(f"{summary.name}: {summary.protocol}: {100 * summary.mean_ap:.2f} %")
    table = kinds_table(summaries)
    for line in table.rows[:-1]:
        print("  ".join([f"{line[0].partition(':')[0]:>14}", *(f"{cell:>9}" for cell in line[1:])]))
    print(f"wrote {' and '.join(map(str, written))}")


def names_of(files: Sequence[Path]) -> list[str]:
    """Call files by their name, and by as many of their folders as it takes to tell them apart.

    >>> names_of([Path("runs/tsa/latest/predictions.csv"), Path("runs/dsta/latest/predictions.csv")])
    ['tsa/latest/predictions', 'dsta/latest/predictions']
    """
    # Links stay: of every run "latest" leads to a folder that is called version_N.
    parts = [Path(os.path.abspath(file)).with_suffix("").parts for file in files]
    for depth in range(1, max(map(len, parts)) + 1):
        names = [Path(*of_file[-depth:]).as_posix() for of_file in parts]
        if len(set(names)) == len(names):
            return names
    return [str(file) for file in files]


def _command(files: Sequence[Path], split: str) -> str:
    against = f" --against {files[1]}" if len(files) > 1 else ""
    return f"python main.py analyse --config CONFIG --predictions {files[0]}{against} --split {split}"


def _error_sections(found: Sequence[tuple[Summary, list[Picture]]]) -> list[Section]:
    text = (
        "The errors that cost the most, each alone; at most one of a kind and class in a video. What is true is green, "
        "boxes dashed; the error is orange, other detections are blue."
    )
    sections = []
    for number, (summary, pictures) in enumerate(found, start=1):
        if pictures:
            named = [Picture(f"{each.name}_{number}", each.content, each.caption) for each in pictures]
            sections.append(Section(f"Costliest errors of {summary.name}", text, pictures=named))
    return sections


def _of_boxes(
    data: LightningDataModule,
    split: Literal["val", "test"],
    settings: FrameMapSettings,
    tolerance_seconds: float,
    num_pictures: int,
) -> Analysis:
    keyframes, num_classes = data.true_keyframes(split), len(data.class_names)
    ids = np.arange(num_classes) if data.evaluated_classes is None else np.asarray(data.evaluated_classes)
    names = [data.class_names[index] for index in ids]
    frame_at = data.frame_reader(split)
    some = "" if data.evaluated_classes is None else f", {len(ids)} of {num_classes} classes"
    properties: list[Property] = []

    def analysis(file: Path, name: str, step: Step) -> tuple[Summary, list[Picture]]:
        preds, targets, places = rows_of_file(file, keyframes, num_classes, ids, tolerance_seconds)
        if not properties:
            properties.extend(_properties(data, split, places))
        step("reading")
        truth = TrueBoxes(keyframes, targets, properties, names, frame_at)
        return analyse_boxes(name, preds, truth, settings, f"{settings}{some}", num_pictures, step)

    return analysis


def _properties(data: LightningDataModule, split: Literal["val", "test"], places: np.ndarray) -> list[Property]:
    """Return the properties that the annotation allows: it need not identify people."""
    keyframes = data.true_keyframes(split)
    speeds = data.speeds(split)
    try:
        times = list(zip(data.seconds_since_start(split), data.seconds_until_end(split), strict=True))
    except UserError:  # people are not identified, so there is no speed and no start of an action
        return box_properties([PeopleOfFrame(one.boxes, one.original_size) for one in keyframes], places)
    frames = [
        PeopleOfFrame(one.boxes, one.original_size, speed, *since_until)
        for one, speed, since_until in zip(keyframes, speeds, times, strict=True)
    ]
    return box_properties(frames, places)


def _of_tubes(
    data: LightningDataModule,
    split: Literal["val", "test"],
    threshold: float,
    protocol: VideoProtocol,
    num_pictures: int,
) -> Analysis:
    tubes, names = data.true_tubes(split), data.class_names
    moments = data.sampled_seconds(split)

    def seconds_of(video: str, slot: int) -> float:
        known = moments[video]
        beyond = max(slot - (len(known) - 1), 0)  # a tube may go on after the end of its video, as time does
        return float(known[slot - beyond] + beyond * (np.diff(known[-2:]).sum() or 1.0))

    sizes = {keyframe.video_id: keyframe.original_size for keyframe in data.true_keyframes(split)}
    truth = TrueVideos(tubes, names, sizes, seconds_of, data.frame_reader(split))

    def analysis(file: Path, name: str, step: Step) -> tuple[Summary, list[Picture]]:
        found = tube_results.read_tubes(file, names)
        if found.frame_stride != data.evaluation_grid:
            raise UserError(
                f"has tubes of one frame in {found.frame_stride}, the ground truth of one in {data.evaluation_grid}",
                file,
                f"set data.init_args.frame_stride to {found.frame_stride}, or keyframe_grid of a clip detector's data",
            )
        videos = tube_results.of_true_videos(found.videos, tubes, file)
        step("reading")
        return analyse_tubes(name, videos, truth, threshold, protocol, found.linker, num_pictures, step)

    return analysis


def _of_segments(
    data: LightningDataModule, split: Literal["val", "test"], threshold: float, num_pictures: int
) -> Analysis:
    truth, names, evaluated_on = data.true_segments(split), data.class_names, data.evaluated_on

    def analysis(file: Path, name: str, step: Step) -> tuple[Summary, list[Picture]]:
        videos = segment_results.of_true_videos(segment_results.read_results(file, names), truth, file)
        step("reading")
        return analyse_segments(name, videos, truth, names, evaluated_on, threshold, num_pictures, step)

    return analysis
