"""Streaming mAP of detectors against the speed of the machine: a page and its picture.

    python -m results.benchmarks.accuracy.streaming_accuracy results/benchmarks/accuracy/streaming_accuracy.yaml

A machine of speed 2 takes half as long. The list names detectors. Each is a config with arguments, which `validate`
runs to get predictions, their time and their delay; or a saved csv with a latency. Results are kept in
``<page>.jsonl``, a line per detector. What is there already and stands in the list as it did is not measured again;
``--rows NAME ...`` measures those alone, ``--again`` all.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser

import datamodules
from datamodules.batches import TrueKeyframe
from datamodules.errors import UserError, shown_in_one_line
from datamodules.files import write_whole
from datamodules.program_help import ProgramParser
from lightning_modules.analysis.figures import as_png, new_figure
from lightning_modules.analysis.pages import Page, Picture, Section, Table, as_markdown
from lightning_modules.commands.score_boxes import rows_of_file
from lightning_modules.metrics.frame_ap import FrameMapSettings, FrameRows, frame_mean_average_precision
from lightning_modules.metrics.streaming_map import arrivals, finish_times, newest_finished, rows_at
from results.benchmarks.accuracy.detector_runs import Detector, check, completed
from results.experiments.files import read_listing
from results.experiments.provenance import commit

SPEEDS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 16)
TEXT = """\
The ground truth of each frame is scored, at the moment of that frame, against the newest prediction that is finished \
by then (Li et al., 2020). At speed 1 a prediction takes as long as it was measured to take, at speed 2 half of that. \
The last column is the mAP of the same predictions as if they took no time and awaited nothing: what tables report."""


def datamodule_of(config: str) -> LightningDataModule:
    """Build what a config has under ``data``; relative files in it are found as the command line finds them."""
    for name in datamodules.__all__:
        getattr(datamodules, name)  # loads it: class names are looked up among what is imported
    parser = LightningArgumentParser(parser_mode="yaml")
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
    path = Path(config)
    data = yaml.safe_load(path.read_text())["data"]
    source = data.get("init_args", {}).get("source")
    if isinstance(source, str):
        data["init_args"]["source"] = yaml.safe_load((path.parent / source).read_text())
    return parser.instantiate(parser.parse_object({"data": data})).data


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


def measure(detector: Detector, listing: dict[str, Any], settings: FrameMapSettings) -> dict[str, object]:
    """Return the line of one detector."""
    complete = completed(detector, listing.get("arguments", ""))
    data = datamodule_of(listing["data"])
    keyframes, num_classes = data.true_keyframes("val"), len(data.class_names)
    sampled = data.sampled_frames("val")
    if len(keyframes) != sum(sampled[video] for video in {keyframe.video_id for keyframe in keyframes}):
        raise UserError("does not annotate every sampled frame, so not every one has a prediction", listing["data"])
    ids = np.arange(num_classes)
    preds, targets, _ = rows_of_file(complete.predictions, keyframes, num_classes, ids, 0.01)
    maps = streaming_maps(preds, targets, keyframes, num_classes, complete, settings)
    found = {"given": given(detector, listing), "maps": maps, "protocol": str(settings)}
    return asdict(complete) | found | {"commit": commit(Path(__file__).parent)}


def shown(speed: float) -> str:
    """Return a speed as the page has it: 1/4x, 4x."""
    return f"1/{round(1 / speed)}x" if speed < 1 else f"{speed:g}x"


def given(detector: Detector, listing: dict[str, Any]) -> dict[str, Any]:
    """Return everything that the list says about a line; one that was measured with another is measured again."""
    common = {key: listing[key] for key in ("data", "arguments", "metric") if key in listing}
    return detector.as_given() | {"list": common}


def draw(lines: Sequence[dict]) -> bytes:
    """mAP against speed; what a detector would have without time as a mark at the right."""
    figure, ((axes,),) = new_figure(9.5, 5.5)
    for number, line in enumerate(lines):
        heights = [100 * line["maps"][f"{speed:g}"] for speed in SPEEDS]
        style = {"color": f"C{number % 10}", "linestyle": ("-", "--")[number // 10 % 2]}
        axes.plot(SPEEDS, heights, marker="o", label=line["name"], **style)
        axes.plot([SPEEDS[-1] * 2], [100 * line["maps"]["offline"]], marker="_", markersize=18, **style)
    axes.set_xscale("log", base=2)
    axes.set_xticks([*SPEEDS, SPEEDS[-1] * 2], [*map(shown, SPEEDS), "no time"], fontsize=8)
    axes.set_xlabel("speed of the machine, over the one that was measured")
    axes.set_ylabel(f"streaming {lines[0]['protocol']}, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return as_png(figure, dpi=110)


def page(lines: Sequence[dict], command: str) -> Page:
    """Return the page of all detectors."""
    head = ["detector", "latency", "awaits", "frames", *map(shown, SPEEDS), "no time"]
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
    names: dict[str, list[str]] = {}
    for line in lines:
        names.setdefault(line["note"], []).append(line["name"])
    of_all = len(names) == 1
    notes = [f"{'Latencies' if of_all else '; '.join(those)}: {note}" for note, those in names.items() if note]
    section = Section(f"Streaming {lines[0]['protocol']}", "\n\n".join([TEXT, *notes]), [Table(head, rows)])
    return Page("Streaming accuracy", [], [section], command)


def measured_lines(record: Path) -> dict[str, dict[str, Any]]:
    """Return the lines that are kept, by the names of their detectors."""
    if not record.is_file():
        return {}
    return {line["name"]: line for line in map(json.loads, record.read_text().splitlines())}


def main(args: Sequence[str] | None = None) -> None:
    parser = ProgramParser(__doc__, "python -m results.benchmarks.accuracy.streaming_accuracy")
    parser.add_argument("list", type=Path, help="results/benchmarks/accuracy/streaming_accuracy.yaml")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="measure these alone, measured before or not")
    parser.add_argument("--again", action="store_true", help="measure all again")
    parser.add_argument("--draw_only", action="store_true", help="measure nothing, make the page of what is kept")
    parser.add_argument("--out", type=Path, default=Path("results/pages/streaming_accuracy.md"))
    arguments = parser.parse_args(args)
    listing, record = read_listing(arguments.list), arguments.out.with_suffix(".jsonl")
    detectors = {line["name"]: Detector(**line) for line in listing["detectors"]}
    names = [line["name"] for line in listing["detectors"]]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"has two detectors of one name ({', '.join(twice)})", arguments.list, "rename one of them")
    for name in arguments.rows or ():
        if name not in detectors:
            raise UserError(f"has no detector {name!r}", arguments.list, f"name one of {', '.join(detectors)}")
    settings, kept = FrameMapSettings(**listing.get("metric", {})), measured_lines(record)
    wanted = [] if arguments.draw_only else arguments.rows or list(detectors)
    for detector in (detectors[name] for name in wanted):
        check(detector)
        is_kept = kept.get(detector.name, {}).get("given") == given(detector, listing)
        if arguments.rows or arguments.again or not is_kept:
            kept[detector.name] = measure(detector, listing, settings)
            # After each, so that an interruption costs one.
            lines = [kept[name] for name in detectors if name in kept]
            write_whole(record, "".join(json.dumps(line) + "\n" for line in lines))
    complete = [
        kept[name] for name, each in detectors.items() if kept.get(name, {}).get("given") == given(each, listing)
    ]
    for name in (name for name in detectors if name not in {line["name"] for line in complete}):
        print(f"{name}: not measured with its present settings, so not on the page; --rows {name!r} measures it")
    if not complete:
        raise UserError("no detector of it has been measured", arguments.list, "leave --draw_only out")
    command = f"python -m results.benchmarks.accuracy.streaming_accuracy {arguments.list}"
    made = page(complete, command)
    picture = Picture(arguments.out.stem, draw(complete), "streaming mAP against the speed of the machine")
    made = Page(made.title, made.lead, [*made.sections, Section("Picture", pictures=[picture])], made.command)
    write_whole(arguments.out.with_suffix(".png"), picture.content)
    write_whole(arguments.out, as_markdown(made))
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    with shown_in_one_line():
        main()
