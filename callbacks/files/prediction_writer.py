"""Write what ``predict`` finds: JSON lines, AVA's csv, videos with boxes."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from io import StringIO
from itertools import count, takewhile
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from callbacks.files.annotated_video import AnnotatedVideo
from callbacks.files.result_files import ResultFiles, say
from datamodules.errors import UserError, printable
from datamodules.video.drawn_videos import is_drawn
from lightning_modules.evaluation.tracked import TrackedFrame

Format = Literal["jsonl", "csv", "mp4"]
Frame = tuple[TrackedFrame, list[dict[str, Any]]]
"""One frame as ``predict_step`` returns it, with its detections as they are written."""


class PredictionWriter(Callback):
    """Write detections while prediction runs, so that what was found is there whenever it ends, by Ctrl-C or kill -9.

    - ``jsonl``: ``<folder>/<video id>.jsonl`` with one line per frame, ``{"video": id, "timestamp": seconds, "frame":
      index in the video, "detections": [{"track": id, "box": [x1, y1, x2, y2] in pixels of the video, "person": score,
      "actions": {name: score}}]}``. ``frame`` and ``track`` are absent where the module does not know them (clip
      detectors).
    - ``csv``: ``<folder>/predictions.csv`` with one row per action in AVA's order. Columns are video id, seconds,
      corners as fractions of the frame, action id counted from 1, and score.
    - ``mp4``: ``<folder>/<video id>.detections.mp4``, the sampled frames at their times with boxes, track ids and
      actions; needs the frames themselves, which ``PredictDataModule`` gives. Where a live source changes the size of
      its frames, another file begins. It can be played while it is written, up to its last frame but one.

    Only persons and actions of at least the thresholds are written; a frame without any is a line too. Files lie in
    sub-folders as their videos do; see ``ResultFiles`` for their names. ``predict_step`` must return ``TrackedFrame``s.

    Args:
        folder: made if missing; files of an earlier prediction are replaced, which is reported. A video that is
            predicted on, or one that prediction did not draw, is never replaced.
        formats: which of the three formats to write.
        person_threshold: least person score. action_threshold: least action score.

    Raises:
        UserError: a file cannot be written. The other files are closed all the same.
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
            raise UserError(f"formats are jsonl, csv and mp4, got {', '.join(sorted(unknown))}")
        self.folder = Path(folder)
        self.formats = tuple(formats)
        self.person_threshold, self.action_threshold = person_threshold, action_threshold
        self._videos: dict[str, AnnotatedVideo] = {}
        self._shown: dict[int, str] = {}
        """The video of each lane."""
        self._pool: ThreadPoolExecutor | None = None
        self._closing: list[Future[None]] = []
        self._files: ResultFiles | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._files = ResultFiles(self.folder, trainer)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Sequence[TrackedFrame],
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        names = trainer.datamodule.class_names
        frames = [(frame, self.detections(frame)) for frame in outputs]
        for kind in self.formats:
            getattr(self, f"_write_{kind}")(frames, batch, names)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if failed := self._close():
            raise UserError("; ".join(failed))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        for failure in self._close():
            rank_zero_warn(failure)

    def detections(self, frame: TrackedFrame) -> list[dict[str, Any]]:
        """Return the persons and actions that are written, as plain numbers and names."""
        return written_detections(frame, self.person_threshold, self.action_threshold)

    def _write_jsonl(self, frames: list[Frame], batch: Any, names: Sequence[str]) -> None:
        lines: dict[str, list[str]] = {}
        for frame, detections in frames:
            line = {"video": frame.video_id, "timestamp": round(frame.seconds, 4)}
            line |= {} if frame.frame is None else {"frame": frame.frame}
            lines.setdefault(frame.video_id, []).append(json.dumps({**line, "detections": detections}) + "\n")
        for video_id, of_video in lines.items():
            self._files.append(self._files.path(video_id, "jsonl"), "".join(of_video))

    def _write_csv(self, frames: list[Frame], batch: Any, names: Sequence[str]) -> None:
        ids = {name: number for number, name in enumerate(names, start=1)}
        rows = StringIO()
        writer = csv.writer(rows, lineterminator="\n")
        for frame, detections in frames:
            height, width = frame.size
            for found in detections:
                x1, y1, x2, y2 = found["box"]
                corners = [f"{side:.4f}" for side in (x1 / width, y1 / height, x2 / width, y2 / height)]
                for name, score in found["actions"].items():
                    writer.writerow([frame.video_id, f"{frame.seconds:.4f}", *corners, ids[name], score])
        self._files.append(self._files.shared_path("predictions", "csv"), rows.getvalue())

    def _write_mp4(self, frames: list[Frame], batch: Any, names: Sequence[str]) -> None:
        for frame, detections in frames:
            if frame.picture is None:
                raise UserError(
                    "the data module gives no pictures to draw on",
                    remedy="take mp4 out of the formats of PredictionWriter, or use "
                    "datamodules.predict.PredictDataModule",
                )
            video = self._video(frame.video_id, frame.picture.shape[:2])
            video.write(frame.picture, frame.seconds, detections)
        for video_id in self._left_behind(batch):
            self._close_beside(video_id)

    def _left_behind(self, batch: Any) -> set[str]:
        """Return the drawn videos that have received their last frame."""
        lanes = getattr(batch, "lanes", None)
        if lanes is None:
            return set(self._videos) - set(batch.video_ids)
        self._shown.update(zip(lanes, batch.video_ids, strict=True))  # lanes without a frame go on later
        return set(self._videos) - set(self._shown.values())

    def _video(self, video_id: str, size: tuple[int, int]) -> AnnotatedVideo:
        """The file that a frame of this size goes into."""
        video = self._videos.get(video_id)
        if video is not None and video.picture_size == size:
            return video
        if video is not None:
            self._close_beside(video_id)
        number = next(n for n in count(1) if not self._files.is_started(self._part(video_id, n)))
        path = self._part(video_id, number)
        self._files.start(path, may_replace=is_drawn)
        self._videos[video_id] = AnnotatedVideo(path, size)
        for stale in takewhile(is_drawn, (self._part(video_id, n) for n in count(number + 1))):
            say(f"removing {printable(str(stale))} of an earlier prediction")
            stale.unlink()
        return self._videos[video_id]

    def _close_beside(self, video_id: str) -> None:
        """Close a video in another thread: its index goes in front by a copy of the file, for which nobody shall wait.

        What went wrong with earlier ones is raised here, or at the end of prediction.
        """
        self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="close videos")
        over = [future for future in self._closing if future.done()]
        self._closing = [future for future in self._closing if future not in over]
        self._closing.append(self._pool.submit(self._videos.pop(video_id).close))
        for future in over:
            future.result()

    def _part(self, video_id: str, number: int) -> Path:
        """Name the annotated video of a source, or the later ones of a live source."""
        return self._files.path(video_id, "detections.mp4" if number == 1 else f"detections.{number}.mp4")

    def _close(self) -> list[str]:
        """Close every file, even if others fail, and return the errors."""
        failed = []

        def call(close: Callable[[], None]) -> None:
            try:
                close()
            except UserError as error:
                failed.append(str(error))

        with ExitStack() as files:  # which closes the others even where one of them raises
            for video in self._videos.values():
                files.callback(call, video.close)
            for future in self._closing:
                files.callback(call, future.result)
            self._videos, self._shown, self._closing = {}, {}, []
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        if self._files is not None:
            self._files.report()
        return sorted(failed)


def written_detections(frame: TrackedFrame, person_threshold: float, action_threshold: float) -> list[dict[str, Any]]:
    """Return the persons and actions of a frame that reach their thresholds, as plain numbers and names."""
    return [
        {
            **({} if person.track is None else {"track": person.track}),
            "box": [round(side, 1) for side in person.box],
            "person": round(person.person_score, 4),
            "actions": {name: round(score, 4) for name, score in person.actions.items() if score >= action_threshold},
        }
        for person in frame.people
        if person.person_score >= person_threshold
    ]
