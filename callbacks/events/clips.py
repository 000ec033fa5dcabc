"""Clips of events: what was to be seen from some seconds before to some seconds after, with boxes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from callbacks.events.past import PastFrames, Shot, shot_of
from callbacks.files.annotated_video import AnnotatedVideo
from callbacks.files.result_files import say
from datamodules.errors import UserError

WAITING_FRAMES = 8
"""Frames that may wait for the thread; they are whole pictures."""
MOST_CLIPS = 16
"""Clips written at once, at most; each has an encoder."""
LONGEST_CLOSE_SECONDS = 120.0
"""After the end of prediction the thread may take so long to write what waits."""


@dataclass(frozen=True)
class ClipSettings:
    """Clips of events.

    Args:
        before_seconds, after_seconds: time shown before and after the event.
        longest_seconds: longest part of an event that a clip shows.
        buffer_mib: memory for the frames before events, of each source, as JPEG; where it is full, ``before_seconds``
            are not reached.
    """

    before_seconds: float = 5.0
    after_seconds: float = 5.0
    longest_seconds: float = 60.0
    buffer_mib: float = 64.0

    def __post_init__(self) -> None:
        for name in ("before_seconds", "after_seconds"):
            if not 0 <= getattr(self, name) < inf:
                raise UserError(f"{name} must be 0 or more, got {getattr(self, name)}")
        for name in ("longest_seconds", "buffer_mib"):
            if not 0 < getattr(self, name) < inf:
                raise UserError(f"{name} must be above 0, got {getattr(self, name)}")


class Begin(NamedTuple):
    """A clip begins."""

    number: int
    """Number of its event."""
    path: Path
    start: float
    """Start of the event, as ``end`` below is its end."""


class End(NamedTuple):
    """An event has ended, so its clip will."""

    number: int
    end: float


class Step(NamedTuple):
    """One message to the thread: a frame of a source, if any, and the events that begin or end with it."""

    source: str
    picture: np.ndarray | None
    seconds: float
    detections: Sequence[dict[str, Any]]
    changes: Sequence[Begin | End]
    is_end: bool = False
    """True once the source has ended: its clips end, and its earlier frames are forgotten."""


@dataclass
class _Clip:
    source: str
    path: Path
    until: float
    """Seconds of the source after which it is whole."""
    newest: float = -inf
    """Seconds of its last frame."""
    video: AnnotatedVideo | None = None


class ClipRecorder:
    """Writer of clips in its own thread, so that prediction waits for neither JPEG nor h264 nor the disk.

    Memory is bounded: WAITING_FRAMES pictures for the thread, ``buffer_mib`` of past frames per source, and MOST_CLIPS
    clips. A frame that would have to wait longer is left out of the clips and counted where the source is live, and
    waited for otherwise.

    Args:
        settings: see ``ClipSettings``.
        longest_wait: seconds from the start of an event until it is known to be one; the past reaches so far, too.

    Attributes:
        left_out: live frames so far for which the thread had no time.
    """

    def __init__(self, settings: ClipSettings, longest_wait: float) -> None:
        self.settings, self.longest_wait = settings, longest_wait
        self.left_out = 0
        self._room = threading.Semaphore(WAITING_FRAMES)
        self._places = threading.Semaphore(MOST_CLIPS)
        self._steps: queue.SimpleQueue[Step | None] = queue.SimpleQueue()
        self._past: dict[str, PastFrames] = {}
        self._clips: dict[int, _Clip] = {}
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="clips of events", daemon=True)
        self._thread.start()

    def reserve(self) -> bool:
        """Take the place of a clip, which a ``Begin`` must follow; False where MOST_CLIPS are being written."""
        return self._places.acquire(blocking=False)

    def add(self, step: Step, is_live: bool) -> None:
        """Take a frame and what changes with it; a live stream never waits."""
        if step.picture is not None and not self._has_room(waits=not is_live):
            self.left_out += 1
            step = step._replace(picture=None)
        if self._error is not None:
            raise self._error
        if step.picture is not None or step.changes or step.is_end:
            self._steps.put(step)

    def close(self) -> None:
        """Finish all clips."""
        self._steps.put(None)
        self._thread.join(LONGEST_CLOSE_SECONDS)
        if self._error is not None:
            raise self._error
        if self._thread.is_alive():
            say(f"the clips of events were not finished after {LONGEST_CLOSE_SECONDS:g} s; they are in fragments")
        if self.left_out:
            say(f"clips of events lack {self.left_out} frames, for which there was no time")

    def _has_room(self, waits: bool) -> bool:
        """Take one of the places for pictures."""
        while not self._room.acquire(blocking=waits, timeout=0.5 if waits else None):
            if not waits or self._error is not None:  # a thread that has failed makes no room
                return False
        return True

    def _run(self) -> None:
        try:
            while (step := self._steps.get()) is not None:
                self._take(step)
                if step.picture is not None:
                    self._room.release()
            for number in list(self._clips):
                self._close(number)
        except Exception as error:  # a bug, which the main thread raises
            self._error = error

    def _take(self, step: Step) -> None:
        shot = None if step.picture is None else shot_of(step.picture, step.seconds, step.detections)
        for change in step.changes:
            if isinstance(change, Begin):
                self._begin(change, step.source, shot)
            elif (clip := self._clips.get(change.number)) is not None:
                clip.until = min(clip.until, change.end + self.settings.after_seconds)
        of_source = [(number, clip) for number, clip in self._clips.items() if clip.source == step.source]
        for number, clip in of_source:
            is_over = step.is_end
            if shot is not None:
                if clip.newest < shot.seconds <= clip.until:
                    self._write(number, clip, [shot])
                is_over |= not clip.newest <= shot.seconds < clip.until
            if is_over:
                self._close(number)
        if step.is_end:
            self._past.pop(step.source, None)
        elif shot is not None:
            self._past_of(step.source).add(shot)

    def _past_of(self, source: str) -> PastFrames:
        if source not in self._past:
            span = self.settings.before_seconds + self.longest_wait
            self._past[source] = PastFrames(span, int(self.settings.buffer_mib * 2**20))
        return self._past[source]

    def _begin(self, begin: Begin, source: str, shot: Shot | None) -> None:
        """Open a clip with the past; the frame with which its event is known to be one comes next."""
        clip = _Clip(source, begin.path, begin.start + self.settings.longest_seconds)
        self._clips[begin.number] = clip
        past = self._past_of(source).since(begin.start - self.settings.before_seconds)
        self._write(begin.number, clip, [each for each in past if shot is None or each.size == shot.size])

    def _write(self, number: int, clip: _Clip, shots: Sequence[Shot]) -> None:
        try:
            for shot in shots:
                if clip.video is None:
                    clip.path.parent.mkdir(parents=True, exist_ok=True)
                    clip.video = AnnotatedVideo(clip.path, shot.size)
                elif clip.video.picture_size != shot.size:  # a live source that has changed
                    self._close(number)
                    return
                clip.video.write(shot.picture(), shot.seconds, shot.detections)
                clip.newest = shot.seconds
        except (UserError, OSError) as error:
            self._give_up(number, clip, error)

    def _close(self, number: int) -> None:
        clip = self._clips.pop(number, None)
        if clip is None:
            return
        self._places.release()
        try:
            if clip.video is not None:
                clip.video.close()
        except UserError as error:
            say(f"a clip of an event is not whole: {error}")

    def _give_up(self, number: int, clip: _Clip, error: Exception) -> None:
        """A disk that is full or gone ends a clip, not the prediction."""
        say(f"a clip of an event ends here: {error}")
        del self._clips[number]
        self._places.release()
        if clip.video is not None:
            with suppress(UserError):
                clip.video.close()
