"""Streaming mAP of saved predictions against the speed of the machine: a page and its picture.

    python -m results.benchmarks.accuracy.streaming_accuracy results/benchmarks/accuracy/streaming_accuracy.yaml

The list names detectors: the config whose data they were tested on, the csv that ``DetectionFile`` saved, how long a
prediction takes here, how many sampled frames it awaits after its own, and which frames get one (see
``lightning_modules.metrics.streaming_map``). A machine of speed 2 takes half as long. Results are added to
``<list>.jsonl`` beside the page, a line a detector, so that the page can be drawn again without the predictions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser

from callbacks.benchmark.provenance import commit
from datamodules.batches import TrueKeyframe
from datamodules.errors import UserError
from datamodules.files import write_whole
from datamodules.program_help import ProgramParser
from lightning_modules.analysis.figures import as_png, new_figure
from lightning_modules.analysis.pages import Page, Picture, Section, Table, as_markdown
from lightning_modules.commands.score_boxes import rows_of_file
from lightning_modules.metrics.frame_ap import FrameMapSettings, FrameRows, frame_mean_average_precision
from lightning_modules.metrics.streaming_map import Schedule, arrivals, finish_times, newest_finished, rows_at

SPEEDS = (0.25, 0.5, 1, 2, 4, 8, 16)
TEXT = """\
The ground truth of each frame is scored, at the moment of that frame, against the newest prediction that is finished \
by then (Li et al., 2020). At speed 1 a prediction takes as long as it was measured to take, at speed 2 half of that. \
The last column is the mAP of the same predictions as if they took no time and awaited nothing: what tables report."""


@dataclass(frozen=True)
class Detector:
    """One line of the picture."""

    name: str
    config: str
    """Whose ``data`` say what is true."""
    predictions: str
    latency_ms: float
    frames_awaited: int = 0
    schedule: Schedule = "newest"
    note: str = ""
    """Where the latency comes from."""


def datamodule_of(config: str) -> LightningDataModule:
    """Build what a config has under ``data``; relative files in it are found as the command line finds them."""
    parser = LightningArgumentParser(parser_mode="yaml")
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
    path = Path(config)
    data = yaml.safe_load(path.read_text())["data"]
    source = data.get("init_args", {}).get("source")
    if isinstance(source, str):
        data["init_args"]["source"] = yaml.safe_load((path.parent / source).read_text())
    return parser.instantiate_classes(parser.parse_object({"data": data})).data


def streaming_maps(
    preds: FrameRows,
    targets: FrameRows,
    keyframes: Sequence[TrueKeyframe],
    num_classes: int,
    detector: Detector,
    settings: FrameMapSettings,
) -> dict[str, float]:
    """Return the streaming mAP at each speed, by the speed as text, and ``offline``, without any time."""

    def mean(rows: FrameRows) -> float:
        return frame_mean_average_precision(rows, targets, len(keyframes), range(num_classes), settings).mean

    of_video: dict[str, list[int]] = {}
    for index, keyframe in enumerate(keyframes):
        of_video.setdefault(keyframe.video_id, []).append(index)
    result = {"offline": mean(preds)}
    for speed in SPEEDS:
        sources = np.full(len(keyframes), -1)
        for frames in of_video.values():
            ordered = np.asarray(sorted(frames, key=lambda index: keyframes[index].timestamp))
            times = np.asarray([keyframes[index].timestamp for index in ordered])
            begin = arrivals(times, detector.frames_awaited)
            finished = finish_times(begin, detector.latency_ms / 1e3 / speed, detector.schedule)
            newest = newest_finished(finished, times)
            sources[ordered] = np.where(newest >= 0, ordered[newest], -1)
        result[f"{speed:g}"] = mean(rows_at(preds, sources))
    return result


def measure(detector: Detector, settings: FrameMapSettings) -> dict[str, object]:
    """Return the line of one detector."""
    data = datamodule_of(detector.config)
    keyframes, num_classes = data.true_keyframes("test"), len(data.class_names)
    sampled = data.sampled_frames("test")
    if len(keyframes) != sum(sampled[video] for video in {keyframe.video_id for keyframe in keyframes}):
        raise UserError("does not annotate every sampled frame, so not every one has a prediction", detector.config)
    ids = np.arange(num_classes)
    preds, targets, _ = rows_of_file(detector.predictions, keyframes, num_classes, ids, 0.01)
    maps = streaming_maps(preds, targets, keyframes, num_classes, detector, settings)
    return vars(detector) | {"maps": maps, "protocol": str(settings), "commit": commit(Path(__file__).parent)}


def draw(lines: Sequence[dict]) -> bytes:
    """mAP against speed; what a detector would have without time as a mark at the right."""
    figure, ((axes,),) = new_figure(7.5, 4.5)
    for number, line in enumerate(lines):
        heights = [100 * line["maps"][f"{speed:g}"] for speed in SPEEDS]
        axes.plot(SPEEDS, heights, marker="o", color=f"C{number}", label=line["name"])
        axes.plot([SPEEDS[-1] * 1.4], [100 * line["maps"]["offline"]], marker="_", markersize=18, color=f"C{number}")
    axes.set_xscale("log", base=2)
    axes.set_xticks([*SPEEDS, SPEEDS[-1] * 1.4], [*(f"{speed:g}x" for speed in SPEEDS), "no time"], fontsize=8)
    axes.set_xlabel("speed of the machine, over the one that was measured")
    axes.set_ylabel(f"streaming {lines[0]['protocol']}, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return as_png(figure, dpi=110)


def page(lines: Sequence[dict], command: str) -> Page:
    """Return the page of all detectors."""
    head = ["detector", "latency", "awaits", "frames", *(f"{speed:g}x" for speed in SPEEDS), "no time"]
    rows = [
        [
            line["name"],
            f"{line['latency_ms']:.1f} ms",
            str(line["frames_awaited"]),
            line["schedule"],
            *(f"{100 * line['maps'][f'{speed:g}']:.1f}" for speed in SPEEDS),
            f"{100 * line['maps']['offline']:.1f}",
        ]
        for line in lines
    ]
    notes = [f"{line['name']}: {line['note']}" for line in lines if line["note"]]
    section = Section(f"Streaming {lines[0]['protocol']}", "\n\n".join([TEXT, *notes]), [Table(head, rows)])
    return Page("Streaming accuracy", [], [section], command)


def main(args: Sequence[str] | None = None) -> None:
    parser = ProgramParser(__doc__, "python -m results.benchmarks.accuracy.streaming_accuracy")
    parser.add_argument("list", type=Path, help="results/benchmarks/accuracy/streaming_accuracy.yaml")
    parser.add_argument("--out", type=Path, default=Path("results/pages/streaming_accuracy.md"))
    parser.add_argument("--draw_only", action="store_true", help="make the page of what was measured before")
    arguments = parser.parse_args(args)
    listing, record = yaml.safe_load(arguments.list.read_text()), arguments.out.with_suffix(".jsonl")
    settings = FrameMapSettings(**listing.get("metric", {}))
    if arguments.draw_only:
        lines = [json.loads(line) for line in record.read_text().splitlines()]
    else:
        lines = [measure(Detector(**detector), settings) for detector in listing["detectors"]]
        write_whole(record, "".join(json.dumps(line) + "\n" for line in lines))
    command = f"python -m results.benchmarks.accuracy.streaming_accuracy {arguments.list}"
    made = page(lines, command)
    picture = Picture(arguments.out.stem, draw(lines), "streaming mAP against the speed of the machine")
    made = Page(made.title, made.lead, [*made.sections, Section("Picture", pictures=[picture])], made.command)
    write_whole(arguments.out.with_suffix(".png"), picture.content)
    write_whole(arguments.out, as_markdown(made))
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
