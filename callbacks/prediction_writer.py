"""Write what ``predict`` finds: JSON lines, AVA's csv, videos with boxes."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.annotated_video import AnnotatedVideo

Format = Literal["jsonl", "csv", "mp4"]
Frame = tuple[dict[str, Any], list[dict[str, Any]]]
"""What ``predict_step`` says of a frame, and of that what is written."""
NAMED_FILES = 10
"""As many files are named when they are done; of more the number is told."""


class PredictionWriter(Callback):
    """Writes detections while prediction runs, so that what was found is there whenever it ends, by Ctrl-C too.

    - ``jsonl``: ``<folder>/<video id>.jsonl`` with a line a frame, ``{"timestamp": seconds, "frame": index in the
      video, "detections": [{"track": id, "box": [x1, y1, x2, y2] in pixels of the video, "person": score, "actions":
      {name: score}}]}``. ``frame`` and ``track`` are absent where the module does not know them (clip detectors).
    - ``csv``: ``<folder>/predictions.csv`` with a row an action in AVA's order: video id, seconds, corners as fractions
      of the frame, action id counted from 1, score.
    - ``mp4``: ``<folder>/<video id>.detections.mp4``, the sampled frames at their times with boxes, track ids and
      actions; needs the frames themselves, which ``PredictDataModule`` gives. Where a live source changes the size of
      its frames, another file begins.

    Only persons and actions of at least the thresholds are written; a frame without any is a line too. "/" in a video
    id becomes "_". One process of several puts its rank into its file names. ``predict_step`` must return dictionaries
    with ``video_id``, ``timestamp``, ``original_size``, ``boxes``, ``scores``, ``person_scores``, and ``frame``,
    ``track_ids`` and ``picture`` where it has them.

    Args:
        folder: made if missing; files of an earlier prediction are replaced, which is told.
        formats: which of the three to write.
        person_threshold: least person score. action_threshold: least action score.
    """

    def __init__(
        self,
        folder: str | Path = "runs/predictions",
        formats: Sequence[Format] = ("jsonl",),
        person_threshold: float = 0.5,
        action_threshold: float = 0.2,
    ) -> None:
        unknown = set(formats) - {"jsonl", "csv", "mp4"}
        if unknown:
            raise ValueError(f"formats are jsonl, csv and mp4, got {', '.join(sorted(unknown))}")
        self.folder = Path(folder)
        self.formats = tuple(formats)
        self.person_threshold, self.action_threshold = person_threshold, action_threshold
        self._started: set[Path] = set()
        self._videos: dict[str, AnnotatedVideo] = {}
        self._rank = ""

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._started.clear()
        self._rank = f".rank{trainer.global_rank}" if trainer.world_size > 1 else ""

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Sequence[dict[str, Any]],
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        names = trainer.datamodule.class_names
        frames = [(entry, self.detections(entry, names)) for entry in outputs]
        for kind in self.formats:
            getattr(self, f"_write_{kind}")(frames, batch, names)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def detections(self, entry: dict[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
        """The persons of one frame as plain numbers and names."""
        persons, found = entry["person_scores"], []
        for index in (persons >= self.person_threshold).nonzero()[:, 0].tolist():
            track = {"track": int(entry["track_ids"][index])} if "track_ids" in entry else {}
            actions = {
                name: round(score, 4)
                for name, score in zip(names, entry["scores"][index].tolist(), strict=True)
                if score >= self.action_threshold
            }
            box = [round(side, 1) for side in entry["boxes"][index].tolist()]
            found.append({**track, "box": box, "person": round(float(persons[index]), 4), "actions": actions})
        return found

    def _write_jsonl(self, frames: list[Frame], batch: Any, names: Sequence[str]) -> None:
        for entry, detections in frames:
            line = {"timestamp": round(entry["timestamp"], 4)}
            line |= {"frame": entry["frame"]} if "frame" in entry else {}
            with self._append(self._path(entry["video_id"], "jsonl")) as file:
                file.write(json.dumps({**line, "detections": detections}) + "\n")

    def _write_csv(self, frames: list[Frame], batch: Any, names: Sequence[str]) -> None:
        ids = {name: number for number, name in enumerate(names, start=1)}
        with self._append(self.folder / f"predictions{self._rank}.csv") as file:
            for entry, detections in frames:
                height, width = entry["original_size"]
                for found in detections:
                    x1, y1, x2, y2 = found["box"]
                    corners = [f"{side:.4f}" for side in (x1 / width, y1 / height, x2 / width, y2 / height)]
                    for name, score in found["actions"].items():
                        row = [entry["video_id"], f"{entry['timestamp']:.4f}", *corners, ids[name], score]
                        csv.writer(file, lineterminator="\n").writerow(row)

    def _write_mp4(self, frames: list[Frame], batch: Any, names: Sequence[str]) -> None:
        for entry, detections in frames:
            picture = entry.get("picture")
            if picture is None:
                raise ValueError(
                    "the data module gives no pictures to draw on; take mp4 out of the formats of PredictionWriter, or "
                    "use datamodules.predict.PredictDataModule"
                )
            video = self._video(entry["video_id"], picture.shape[:2])
            video.write(picture, entry["timestamp"], detections)
        for video_id in set(self._videos) - set(batch.video_ids):
            self._videos.pop(video_id).close()

    def _video(self, video_id: str, size: tuple[int, int]) -> AnnotatedVideo:
        """The file that a frame of this size goes into."""
        video = self._videos.get(video_id)
        if video is None or video.picture_size != size:
            path, part = self._path(video_id, "detections.mp4"), 1
            while path in self._started:
                part += 1
                path = self._path(video_id, f"detections.{part}.mp4")
            if video is not None:
                video.close()
            self._start(path)
            self._videos[video_id] = AnnotatedVideo(path, size)
        return self._videos[video_id]

    def _path(self, video_id: str, ending: str) -> Path:
        # The whole id: videos of one name in two folders are told apart by their paths.
        return self.folder / f"{video_id.strip('/').replace('/', '_')}{self._rank}.{ending}"

    def _append(self, path: Path) -> TextIO:
        """Open a file to go on with it; what an earlier prediction left there goes."""
        mode = "a" if path in self._started else "w"
        self._start(path)
        return path.open(mode, encoding="utf-8", newline="")

    def _start(self, path: Path) -> None:
        if path not in self._started:
            if path.exists():
                print(f"replacing {path} of an earlier prediction")
            self._started.add(path)

    def _close(self) -> None:
        for video in self._videos.values():
            video.close()
        self._videos.clear()
        if len(self._started) <= NAMED_FILES:
            for path in sorted(self._started):
                print(f"wrote {path}")
        else:
            print(f"wrote {len(self._started)} files into {self.folder}")
        self._started.clear()
