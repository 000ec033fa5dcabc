"""Report events while prediction runs: lines of JSON, clips, and messages by sinks."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from callbacks.events.clips import Begin, ClipRecorder, ClipSettings, End, Step
from callbacks.events.machine import Event, EventMachine
from callbacks.events.rules import check_actions, read_rules
from callbacks.events.sinks import EventSink, Message
from callbacks.files.prediction_writer import written_detections
from callbacks.files.result_files import ResultFiles, say, write_all
from datamodules.errors import UserError, printable
from datamodules.files import errors_named
from lightning_modules.evaluation.tracked import TrackedFrame

IDLE_SECONDS = 10.0
"""A source of several that gives no frame for so long has its events ended, since it may not come back."""


class EventReporter(Callback):
    """Report what people do as events: by whom, where, from when to when.

    ``<folder>/events.jsonl`` gets one line an event, when it has ended: ``{"event": id, "state": "ended", "rule": name,
    "action": name, "source": video id, "track": number or null, "zone": name or polygon or null, "start": seconds,
    "end": seconds, "score": the highest, "clip": file or null, "reported": UTC}``. Lines are added to those of earlier
    predictions. Its clip is an mp4 beside it, which ends ``after_seconds`` later. It can be played while it is written
    and after a kill. Sinks get the same; where they ask for the beginning of events, "state" is "began" there, "end" is
    null, and "event" says what belongs together.

    An event ends with its source, too: with the file, and of several cameras when one has given no frame for 10 s.
    ``predict_step`` must return ``TrackedFrame``s.

    Args:
        rules: a YAML file, its content, or a list of rules; see ``Rule``.
        folder: folder of the lines and the clips, made if missing.
        clips: see ``ClipSettings``; None makes no clips. They need the frames themselves, which ``PredictDataModule``
            gives.
        sinks: further receivers of events.
        person_threshold: people with lower person scores count as not found.

    Attributes:
        listeners: called with every message, of a begin and of an end, in the thread of prediction.
    """

    def __init__(
        self,
        rules: str | dict[str, Any] | list[dict[str, Any]],
        folder: str | Path = "runs/events",
        clips: ClipSettings | None = ClipSettings(),
        sinks: list[EventSink] | None = None,
        person_threshold: float = 0.5,
    ) -> None:
        if not 0 <= person_threshold <= 1:
            raise UserError(f"person_threshold must be from 0 to 1, got {person_threshold}")
        self.rules = read_rules(rules)
        self.folder, self.clips, self.sinks = Path(folder), clips, list(sinks or ())
        self.person_threshold = person_threshold
        self.listeners: list[Callable[[Message], None]] = []
        self._files: ResultFiles | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_actions(self.rules, trainer.datamodule.class_names)
        self._files = ResultFiles(self.folder, trainer)
        self._machine = EventMachine(self.rules, self.person_threshold)
        self._known: dict[int, tuple[str, Path | None]] = {}
        self._seen: dict[str, float] = {}
        self._newest: dict[str, float] = {}
        """Time of the newest frame that came of each live source, answered or not."""
        self._over_until: dict[str, float] = {}
        """Time up to which each source was ended since it gave no frame."""
        self._counts = dict.fromkeys((rule.name for rule in self.rules), 0)
        longest_wait = max(rule.shortest_seconds for rule in self.rules)
        self._recorder = None if self.clips is None else ClipRecorder(self.clips, longest_wait)
        self._started: list[EventSink] = []
        for sink in self.sinks:
            sink.start()
            self._started.append(sink)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Sequence[TrackedFrame],
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        now = time.monotonic()
        is_live = getattr(batch, "capture", None) is not None
        if is_live:
            self._newest |= zip(batch.video_ids, batch.timestamps[:, -1].tolist(), strict=True)
        for frame in outputs:
            if frame.seconds <= self._over_until.get(frame.video_id, -inf):
                continue  # it waited for its answer when its source was lost, and would begin the same event again
            self._seen[frame.video_id] = now
            changes = self._machine.add(frame)
            if self._recorder is not None:
                self._recorder.add(self._step(frame, changes), is_live)
            self._report(changes)
        is_last = getattr(batch, "is_last", None)
        over = [] if is_last is None else [batch.video_ids[row] for row in is_last.nonzero().flatten().tolist()]
        idle = [source for source, seen in self._seen.items() if now - seen > IDLE_SECONDS]
        self._over_until |= {source: self._newest[source] for source in idle if source in self._newest}
        over += idle
        for source in dict.fromkeys(over):
            self._finish(source)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        try:
            self._close()
        except UserError as error:
            rank_zero_warn(str(error))

    def _step(self, frame: TrackedFrame, changes: Sequence[Event]) -> Step:
        if frame.picture is None:
            remedy = "set clips of EventReporter to null, or use datamodules.predict.PredictDataModule"
            raise UserError("the data module gives no pictures for clips", remedy=remedy)
        lowest = min(rule.end_score for rule in self.rules)
        detections = written_detections(frame, self.person_threshold, lowest)
        return Step(frame.video_id, frame.picture, frame.seconds, detections, self._clip_changes(changes))

    def _clip_changes(self, changes: Sequence[Event]) -> list[Begin | End]:
        clips: list[Begin | End] = []
        for event in changes:
            if event.end is not None:
                clips.append(End(event.number, event.end))
            elif (path := self._identity(event)[1]) is not None:
                clips.append(Begin(event.number, path, event.start))
        return clips

    def _identity(self, event: Event) -> tuple[str, Path | None]:
        """Return the id of an event, and its clip."""
        if event.number not in self._known:
            name, path = uuid.uuid4().hex, None
            if self._recorder is not None and self._files is not None and self._recorder.reserve():
                rule = "".join(c if c.isalnum() or c in "-_" else "_" for c in event.rule.name)
                path = self._files.path(event.source, f"{rule}.{event.start:.1f}s.{name[:8]}.mp4")
            self._known[event.number] = (name, path)
        return self._known[event.number]

    def _report(self, changes: Sequence[Event]) -> None:
        for event in changes:
            message = self._message(event)
            if event.end is not None:
                self._write(message)
                self._counts[event.rule.name] += 1
                del self._known[event.number]
            for sink in self._started:
                sink.send(message)
            for listener in self.listeners:
                listener(message)

    def _message(self, event: Event) -> Message:
        name, clip = self._identity(event)
        return {
            "event": name,
            "state": "began" if event.end is None else "ended",
            "rule": event.rule.name,
            "action": event.rule.action,
            "source": printable(event.source),
            "track": event.track,
            "zone": event.rule.zone_name or event.rule.zone,
            "start": round(event.start, 4),
            "end": None if event.end is None else round(event.end, 4),
            "score": round(event.score, 4),
            "clip": None if clip is None else printable(str(clip)),
            "reported": datetime.now(UTC).isoformat(timespec="milliseconds"),
        }

    def _write(self, message: Message) -> None:
        """Add a line, which may be cut off by nothing but a full disk, and then is not there at all."""
        path = self._files.shared_path("events", "jsonl")
        with errors_named(path), path.open("ab", buffering=0) as file:
            write_all(file, f"{json.dumps(message)}\n".encode())

    def _finish(self, source: str) -> None:
        """End the events of a source, whose clips end with it."""
        self._seen.pop(source, None)
        changes = self._machine.finish(source)
        if self._recorder is not None:
            self._recorder.add(Step(source, None, inf, (), self._clip_changes(changes), is_end=True), is_live=True)
        self._report(changes)

    def _close(self) -> None:
        """End all that has begun, even if a part of it fails."""
        if self._files is None:
            return
        errors: list[Exception] = []
        parts: list[Callable[[], None]] = [lambda: self._report(self._machine.finish())]
        parts += [] if self._recorder is None else [self._recorder.close]
        parts += [sink.close for sink in self._started]
        for part in parts:
            try:
                part()
            except Exception as error:  # the others are closed all the same
                errors.append(error)
        counts = ", ".join(f"{count} {name}" for name, count in self._counts.items())
        say(f"events: {counts}; {printable(str(self._files.shared_path('events', 'jsonl')))}")
        self._files = None
        if errors:
            raise errors[0]
