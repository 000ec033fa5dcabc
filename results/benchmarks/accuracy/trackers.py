"""HOTA and IDF1 of trackers on what a student finds in the Puppets videos.

    python -m results.benchmarks.accuracy.trackers

needs two libraries:

    pip install --no-deps trackeval==1.3.0 trackers==2.6.1 supervision==0.31.2
    pip install defusedxml pycocotools pydeprecate requests rich

Neither library is in an extra. Both require opencv-python, which shares its folder with the opencv-python-headless of
albumentations. Installed without dependencies they use the one that is there.

The arguments of every tracker are chosen on training videos, by HOTA, and scored on validation videos once. Both are
done at the pace of the student and at a quarter of it, where people have moved further. All get the same detections;
duplicates are removed as ``OnlineLinker`` does. A person without a number counts as not found.

Writes ``results/pages/trackers.md``, whose section "What follows" it leaves as it is. To try it:
``--size tiny --videos 1 --training 1 --trackers "OnlineLinker, iou_threshold 0.1" --out /tmp/trackers.md``.
"""

from __future__ import annotations

import importlib.util
import itertools
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from callbacks.benchmark.provenance import device_name, now
from datamodules.errors import UserError, shown_in_one_line
from datamodules.files import require_writable, write_whole
from datamodules.program_help import ProgramParser
from datamodules.puppets.source import Puppets
from lightning_modules.evaluation.predictions import Answer
from lightning_modules.evaluation.stream_predictor import StreamPredictor
from lightning_modules.linking.online import OnlineLinker
from lightning_modules.metrics.tubes import box_iou, by_score, without_duplicates
from lightning_modules.networks.detection.outputs import ScoredBoxes
from lightning_modules.session import StreamSession
from results.experiments.provenance import commit
from results.tables.markdown import markdown_table

Settings = dict[str, float]
PACKAGES = ("trackeval", "trackers", "supervision")
NMS_THRESHOLD = 0.6
"""The threshold of ``OnlineLinker``."""


class Frame(NamedTuple):
    """One sampled frame: its detections and its people."""

    found: ScoredBoxes
    boxes: np.ndarray
    """(M, 4) pixels."""
    people: np.ndarray
    """(M,) int64."""


class Seen(NamedTuple):
    """Numbers that a tracker gives in a frame."""

    ids: np.ndarray
    boxes: np.ndarray


Tracker = Callable[[ScoredBoxes], Seen]


def frames_of(weights: Path, source: Puppets, split: str, num_videos: int) -> list[list[Frame]]:
    """Detect in some videos of a split; every sampled frame is annotated."""
    session = StreamSession.from_pretrained(weights)
    videos = []
    for video in tqdm(source.videos(split)[:num_videos], desc=f"detecting, {split}", unit="video", leave=False):
        truth = {round(keyframe.timestamp, 3): keyframe for keyframe in video.keyframes}
        frames = []
        for frame, found in answers(session, video.path):
            keyframe = truth[round(frame.timestamp, 3)]
            size = np.tile(frame.original_size.numpy()[::-1], 2)
            frames.append(Frame(found, keyframe.boxes * size, keyframe.tracks))
        videos.append(frames)
    return videos


@torch.inference_mode()
def answers(session: StreamSession, path: Path) -> Iterator[Answer]:
    """Yield what ``predict`` finds in a video, before anybody is tracked."""
    predictor = StreamPredictor(session.network, session._decode)
    for batch in session._batches(path, None, None, None, chunk_frames=8):
        yield from predictor.add(batch._replace(pictures=()))
    yield from predictor.finish()


def online(**settings: float) -> Tracker:
    """Return our own linker."""
    linker: OnlineLinker | None = None

    def track(found: ScoredBoxes) -> Seen:
        nonlocal linker
        linker = linker or OnlineLinker(found.scores.shape[1], **settings)
        linked = linker.update(*found)
        return Seen(linked.track_ids.numpy(), linked.boxes.numpy())

    return track


def of_trackers(name: str) -> Callable[..., Tracker]:
    """Return what makes a tracker of the library ``trackers``."""

    def make(min_score: float, **settings: float) -> Tracker:
        import supervision
        import trackers

        tracker = getattr(trackers, name)(**settings)

        def track(found: ScoredBoxes) -> Seen:
            boxes, persons = found.boxes.double().numpy(), found.person_scores.double().numpy()
            kept = by_score(persons, boxes)
            kept = kept[persons[kept] >= min_score]
            kept = kept[without_duplicates(box_iou(boxes[kept, None], boxes[kept]), NMS_THRESHOLD)]
            none = np.zeros(len(kept), int)
            tracked = tracker.update(supervision.Detections(boxes[kept], confidence=persons[kept], class_id=none))
            known = tracked.tracker_id >= 0
            return Seen(tracked.tracker_id[known].astype(np.int64), tracked.xyxy[known])

        return track

    return make


def scores(videos: Iterable[Sequence[Frame]], make: Callable[..., Tracker], settings: Settings) -> dict[str, float]:
    """HOTA, its parts, IDF1 in % and the switches of identity, over all videos as ``trackeval`` joins them."""
    from trackeval.metrics import CLEAR, HOTA, Identity

    metrics = HOTA(), Identity({"PRINT_CONFIG": False}), CLEAR({"PRINT_CONFIG": False})
    results: list[dict[str, dict[str, object]]] = [{} for _ in metrics]
    seconds, count = 0.0, 0
    for number, frames in enumerate(videos):
        track = make(**settings)
        begin = time.process_time()
        seen = [track(frame.found) for frame in frames]
        seconds, count = seconds + time.process_time() - begin, count + len(frames)
        for metric, result in zip(metrics, results, strict=True):
            result[str(number)] = metric.eval_sequence(_sequence(frames, seen))
    hota, identity, clear = (metric.combine_sequences(result) for metric, result in zip(metrics, results, strict=True))
    return {
        "HOTA": 100 * float(np.mean(hota["HOTA"])),
        "DetA": 100 * float(np.mean(hota["DetA"])),
        "AssA": 100 * float(np.mean(hota["AssA"])),
        "IDF1": 100 * float(identity["IDF1"]),
        "MOTA": 100 * float(clear["MOTA"]),
        "switches": int(clear["IDSW"]),
        "ms": 1e3 * seconds / count,
    }


def _sequence(frames: Sequence[Frame], seen: Sequence[Seen]) -> dict[str, object]:
    """Return a video as the metrics of ``trackeval`` take it: ids without gaps, IoU of all pairs of a frame."""
    true_ids, true_count = _without_gaps([frame.people for frame in frames])
    ids, count = _without_gaps([each.ids for each in seen])
    return {
        "num_timesteps": len(frames),
        "num_gt_ids": true_count,
        "num_tracker_ids": count,
        "num_gt_dets": sum(map(len, true_ids)),
        "num_tracker_dets": sum(map(len, ids)),
        "gt_ids": true_ids,
        "tracker_ids": ids,
        "similarity_scores": [
            box_iou(frame.boxes[:, None].astype(float), each.boxes.astype(float))
            for frame, each in zip(frames, seen, strict=True)
        ],
    }


def _without_gaps(ids: Sequence[np.ndarray]) -> tuple[list[np.ndarray], int]:
    known, places = np.unique(np.concatenate(ids), return_inverse=True)
    return np.split(places, np.cumsum([len(each) for each in ids])[:-1]), len(known)


def grid(**choices: Sequence[float]) -> list[Settings]:
    """Return every combination."""
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


SHARED = {"lost_track_buffer": (5, 10, 20), "minimum_iou_threshold": (0.1, 0.3), "minimum_consecutive_frames": (1, 2)}
CANDIDATES: Mapping[str, tuple[Callable[..., Tracker], list[Settings]]] = {
    "OnlineLinker, iou_threshold 0.3": (online, [{"iou_threshold": 0.3}]),
    "OnlineLinker, iou_threshold 0.1": (online, [{"iou_threshold": 0.1}]),
    "OnlineLinker": (online, grid(iou_threshold=(0.1, 0.3), min_score=(0.3, 0.7), max_gap=(5, 10, 20))),
    "ByteTrack, defaults": (of_trackers("ByteTrackTracker"), [{"min_score": 0.1}]),
    "ByteTrack": (
        of_trackers("ByteTrackTracker"),
        grid(min_score=(0.1,), high_conf_det_threshold=(0.3,), track_activation_threshold=(0.3, 0.7), **SHARED),
    ),
    "OC-SORT": (of_trackers("OCSORTTracker"), grid(min_score=(0.1,), high_conf_det_threshold=(0.3,), **SHARED)),
}


PACES = (1, 4)
"""Spacings of the tracked frames: every sampled one, and one of four."""


Row = dict[str, object]


def measure(weights: Path, size: str, num_videos: int, num_training: int, names: Sequence[str]) -> list[Row]:
    """Choose on training videos, score on validation videos."""
    source = Puppets(size=size)
    source.prepare()
    found = frames_of(weights, source, "train", num_training), frames_of(weights, source, "val", num_videos)
    rows: list[Row] = []
    with tqdm(total=len(PACES) * len(names), unit="tracker") as bar:
        for pace in PACES:
            training, validation = ([frames[::pace] for frames in videos] for videos in found)
            counts = {"videos": len(validation), "frames": sum(map(len, validation)), "training": len(training)}
            for name in names:
                bar.set_description(name)
                make, choices = CANDIDATES[name]
                best = choices[0]
                if len(choices) > 1:
                    best = max(choices, key=lambda settings, make=make: scores(training, make, settings)["HOTA"])
                rounded = {key: round(value, 2) for key, value in scores(validation, make, best).items()}
                facts = {"tracker": name, "one_frame_of": pace, "settings": best, "choices": len(choices)}
                rows.append(facts | counts | rounded)
                bar.update()
    return rows


HEADER = """# Trackers: which one gives people their numbers

Written by `python -m results.benchmarks.accuracy.trackers{arguments}`, up to "What follows": `OnlineLinker` against
ByteTrack and OC-SORT of the library `trackers` (2.6.1, Apache 2.0), on the same detections of `{weights}` (stride 2) on
{videos} validation videos of Puppets `{size}`. HOTA and IDF1 by `trackeval` (1.3.0) over all videos together. Arguments
are those that did best by HOTA on {training} training videos, of so many combinations. Nothing is drawn at random.

{machine}, {threads} threads, float32, PyTorch {torch}, commit {commit}, {time}.
"""
FIGURES = {"HOTA": 1, "DetA": 1, "AssA": 1, "IDF1": 1, "MOTA": 1, "switches": 0}
FOLLOWS = "\n## What follows\n"


def page(rows: Sequence[Row], weights: Path, size: str, arguments: str) -> str:
    """Tables of both paces."""
    text = HEADER.format(
        **{name: rows[0][name] for name in ("videos", "training")},
        arguments=arguments,
        weights=weights,
        size=size,
        machine=device_name(torch.device("cpu")),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        commit=commit(Path(__file__).parent),
        time=now()[:10],
    )
    for pace in PACES:
        at_pace = [row for row in rows if row["one_frame_of"] == pace]
        heading = "Every sampled frame" if pace == 1 else f"One sampled frame of {pace}: people move further"
        cells = [
            [
                str(row["tracker"]),
                *(f"{row[name]:.{digits}f}" for name, digits in FIGURES.items()),
                f"{row['ms']:.1f}",
                ", ".join(f"{name} {value:g}" for name, value in dict(row["settings"]).items()),  # type: ignore[call-overload]
                str(row["choices"]),
            ]
            for row in at_pace
        ]
        head = ["tracker", *FIGURES, "ms a frame", "arguments", "of"]
        text += f"\n## {heading}\n\n{at_pace[0]['frames']} frames.\n\n{markdown_table(head, cells)}\n"
    return text


def require_packages() -> None:
    """Refuse to begin where the trackers or their metrics are not installed.

    Raises:
        UserError: with the head of this file, which has the commands that bring them.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        remedy = "python -m results.benchmarks.accuracy.trackers --help has the commands that bring them"
        raise UserError(f"{', '.join(missing)} not installed", remedy=remedy)


def main(args: Sequence[str] | None = None) -> None:
    parser = ProgramParser(__doc__, "python -m results.benchmarks.accuracy.trackers")
    parser.add_argument("--weights", type=Path, default=Path("results/weights/dsta.pt"))
    parser.add_argument("--size", choices=("tiny", "small", "full"), default="small")
    parser.add_argument("--videos", type=int, default=24, help="to score on, at most (%(default)s)")
    parser.add_argument("--training", type=int, default=12, help="videos to choose arguments on, at most (%(default)s)")
    parser.add_argument("--trackers", nargs="+", choices=CANDIDATES, default=list(CANDIDATES), metavar="TRACKER")
    parser.add_argument("--out", type=Path, default=Path("results/pages/trackers.md"))
    given = parser.parse_args(args)
    require_packages()
    require_writable(given.out)
    rows = measure(given.weights, given.size, given.videos, given.training, given.trackers)
    options = "".join(
        f" --{name} {getattr(given, name)}"
        for name in ("weights", "size", "videos", "training")
        if getattr(given, name) != parser.get_default(name)
    )
    if given.trackers != parser.get_default("trackers"):
        options += f" --trackers {shlex.join(given.trackers)}"
    text = page(rows, given.weights, given.size, options)
    old = given.out.read_text(encoding="utf-8") if given.out.is_file() else ""
    kept = "".join(old.partition(FOLLOWS)[1:])
    write_whole(given.out, text + kept)
    print(f"{text}\nwritten to {given.out}")


if __name__ == "__main__":
    with shown_in_one_line():
        main()
