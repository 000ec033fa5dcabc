"""Settings of the online linker for each detector, chosen on training videos: ``results/pages/tube_settings.md``.

    python -m results.benchmarks.accuracy.tube_settings results/benchmarks/accuracy/tube_settings.yaml

``python main.py test`` finds people in the validation videos and in as many training videos. All settings of the grid
are tried on what it found there. The one with the best video mAP@0.5:0.95 on training videos is scored on validation.
A detector has seen the training videos, but the settings have no part in its weights.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from tqdm import tqdm

from callbacks.benchmark.provenance import device_name
from datamodules.annotations.few_labels import WrappedSource
from datamodules.annotations.source import AnnotatedVideo, DetectionSource, Split
from datamodules.batches import TrueTubes
from datamodules.errors import shown_in_one_line
from datamodules.files import require_writable, write_whole
from datamodules.program_help import ProgramParser
from lightning_modules.evaluation.tubes import VideoMapSettings
from lightning_modules.linking.online import OnlineTubes
from lightning_modules.metrics.video_map import VideoMeanAveragePrecision
from lightning_modules.networks.detection.outputs import ScoredBoxes
from results.benchmarks.accuracy.detector_runs import COMMAND, call
from results.benchmarks.accuracy.trackers import grid
from results.experiments.files import read_listing
from results.experiments.provenance import commit
from results.tables.markdown import markdown_table

LINKED: Mapping[str, tuple[float, ...]] = {"smoothing": (0.0, 0.2, 0.4)}
"""Settings of following people: they are linked once for each."""
CUT: Mapping[str, tuple[float, ...]] = {
    "score_threshold": (0.1, 0.15, 0.25),
    "begin_share": (0.0, 0.3, 0.6),
    "end_share": (0.0, 0.3, 0.6),
    "lead": (0, 1, 2),
}
"""Settings of where a tube begins and ends."""
KEPT = "results.benchmarks.accuracy.tube_settings.KeepDetections"
"""Class path of the callback below, for the command line."""
FOLDER = Path("runs/tube_settings")
"""Folder of the detections and of the output of commands."""
OVERLAPS = {"map_20": "@0.2", "map_50": "@0.5", "map_75": "@0.75", "map_50_95": "@0.5:0.95"}
CHOSEN_BY = "map_50_95"


class TrainingVideos(WrappedSource):
    """Another source whose evaluated videos are the first of its training videos."""

    def __init__(self, source: DetectionSource, num_videos: int) -> None:
        super().__init__(source)
        self.num_videos = num_videos

    def videos(self, split: Split) -> tuple[AnnotatedVideo, ...]:
        return self.source.videos("train")[: self.num_videos]


@dataclass
class Found:
    """Detections in some videos, and their ground truth."""

    frames: dict[str, dict[int, ScoredBoxes]]
    """By video and number of the sampled frame."""
    truth: Mapping[str, TrueTubes]
    num_classes: int


class KeepDetections(Callback):
    """Keep what the linker gets in ``test``, in a file that ``torch.load`` reads."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.found: Found | None = None

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        evaluation = pl_module.evaluator.videos
        kept = self.found = Found({}, evaluation.truth, evaluation.metric.num_classes)
        passed_on = evaluation.add

        def add(frames: Sequence[tuple[str, int]], scored: Sequence[ScoredBoxes]) -> None:
            for (video, slot), found in zip(frames, scored, strict=True):
                kept.frames.setdefault(video, {})[slot] = ScoredBoxes(*(column.cpu().clone() for column in found))
            passed_on(frames, scored)

        evaluation.add = add

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.save(self.found, self.path)


def detect(arguments: Sequence[str], name: str) -> Found:
    """Run ``test`` with these arguments."""
    file = FOLDER / f"{name}.pt"
    saved = ["--model.detection.video_map.linker=online", "--trainer.callbacks=[]", f"--trainer.callbacks+={KEPT}"]
    saved += [f"--trainer.callbacks.path={file}", "--name=tube_settings/run"]
    call(COMMAND, ["test", *arguments, *saved], FOLDER / f"{name}.log")
    return torch.load(file, weights_only=False)


def linked(found: Found, settings: VideoMapSettings) -> dict[str, OnlineTubes]:
    """Link the people of every video."""
    videos = {}
    for video, frames in found.frames.items():
        tubes = settings.tubes(found.num_classes, stride=1)
        assert isinstance(tubes, OnlineTubes)
        for slot in range(found.truth[video].num_slots):
            tubes.add(*frames[slot])
        videos[video] = tubes
    return videos


def video_map(found: Found, videos: Mapping[str, OnlineTubes], cut: Mapping[str, Any]) -> dict[str, float]:
    """Return the video mAP at each overlap, in percent, of tubes cut so, else as they were linked."""
    metric = VideoMeanAveragePrecision(found.num_classes)
    for video, tubes in videos.items():
        for name, value in cut.items():
            setattr(tubes, name, value)
        truth = [tube._asdict() for tube in found.truth[video].tubes]
        metric.update([{"tubes": tubes.tubes()}], [{"tubes": truth}])
    result = metric.compute()
    return {overlap: 100 * float(result[overlap]) for overlap in OVERLAPS}


def best(found: Found, title: str) -> dict[str, float]:
    """Return the settings of the grid with the best video mAP."""
    tried: list[tuple[float, dict[str, float]]] = []
    for common in grid(**LINKED):
        videos = linked(found, replace(VideoMapSettings(), **common))
        for cut in tqdm(grid(**CUT), desc=f"{title}, {common}", unit="setting", leave=False):
            tried.append((video_map(found, videos, cut)[CHOSEN_BY], common | cut))
    return max(tried, key=lambda pair: pair[0])[1]


def scored(found: Found, settings: Mapping[str, Any]) -> dict[str, float]:
    """Return the video mAP of settings of the linker."""
    return video_map(found, linked(found, replace(VideoMapSettings(), **settings)), {})


def rows_of(name: str, training: Found, validation: Found, presets: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return the lines of one detector: the defaults, its own best settings, those of the configs."""
    chosen = best(training, name)
    named = {"defaults": {}, "its own: " + ", ".join(f"{key} {value:g}" for key, value in chosen.items()): chosen}
    lines = []
    for title, settings in {**named, **presets}.items():
        figures = [scored(each, settings) for each in (training, validation)]
        lines.append([name, title, f"{figures[0][CHOSEN_BY]:.1f}", *(f"{value:.1f}" for value in figures[1].values())])
    return lines


def main(args: Sequence[str] | None = None) -> None:
    parser = ProgramParser(__doc__, "python -m results.benchmarks.accuracy.tube_settings")
    parser.add_argument("list", type=Path, help="results/benchmarks/accuracy/tube_settings.yaml")
    parser.add_argument("--out", type=Path, default=Path("results/pages/tube_settings.md"))
    arguments = parser.parse_args(args)
    require_writable(arguments.out)
    listing = read_listing(arguments.list)
    presets = {f"`{file}`": yaml.safe_load(Path(file).read_text()) for file in listing["presets"]}
    lines: list[list[str]] = []
    for line in listing["detectors"]:
        begin = [*shlex.split(line["arguments"]), *shlex.split(listing["arguments"])]
        training = detect([*begin, f"--data.source={listing['training']}"], "training")
        validation = detect([*begin, f"--data.source={listing['validation']}"], "validation")
        lines += rows_of(line["name"], training, validation, presets)
    head = ["detector", "settings of the linker", f"training videos, {OVERLAPS[CHOSEN_BY]} %"]
    head += [f"validation, {overlap} %" for overlap in OVERLAPS.values()]
    text = f"""\
# Where tubes begin and end

{listing["text"].strip()}

{markdown_table(head, lines)}

One run each; {device_name(torch.device("cpu"))}, threads: {torch.get_num_threads()}, float32; commit
{commit(Path(__file__).parent)}.

Written by `python -m results.benchmarks.accuracy.tube_settings {arguments.list}`.
"""
    write_whole(arguments.out, text)
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    with shown_in_one_line():
        main()
