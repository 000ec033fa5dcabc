"""Events of people in frames, by a state machine that reads, writes and waits for nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

from callbacks.events.rules import Rule
from callbacks.events.zones import contains, place
from lightning_modules.evaluation.tracked import TrackedFrame

EXACT = 1e-6
"""Seconds; time stamps are sums, so that equal times differ by less."""
Track = int | None
"""None where a detector does not track: then the best of all people in a frame stands for them."""


class Event(NamedTuple):
    """One person doing the action of a rule; times in seconds of the source."""

    number: int
    """Counted from 0 over all sources; the same in the report of the begin and of the end."""
    rule: Rule
    source: str
    track: Track
    start: float
    end: float | None
    """The last frame in which it went on; None while it does."""
    score: float
    """The highest until then."""


@dataclass
class _Span:
    """One person doing the action so far; an event once it has a number."""

    start: float
    last: float
    score: float
    number: int | None = None


class EventMachine:
    """Apply rules to the frames of any number of sources; results depend on their time stamps alone.

    See ``Rule`` for what begins, goes on and ends. An action may begin just after another person was lost. Whether it
    falls into that event's dead time is known once the other is found again or has ended; until then it is no event.

    Args:
        rules: all of them.
        person_threshold: people with lower person scores count as not found.
    """

    def __init__(self, rules: Sequence[Rule], person_threshold: float = 0.5) -> None:
        self.rules, self.person_threshold = tuple(rules), person_threshold
        self._spans: dict[str, list[dict[Track, _Span]]] = {}
        self._dead_until: dict[str, list[float]] = {}
        self._now: dict[str, float] = {}
        self._numbers = count()

    def add(self, frame: TrackedFrame) -> list[Event]:
        """Return the events that end (``end`` is set) and those that begin with the next frame of a source.

        A frame whose time lies before that of the last one begins its source anew.
        """
        source = frame.video_id
        changes = self.finish(source) if frame.seconds < self._now.get(source, -math.inf) else []
        if source not in self._spans:
            self._spans[source] = [{} for _ in self.rules]
            self._dead_until[source] = [-math.inf] * len(self.rules)
        self._now[source] = frame.seconds
        for index, rule in enumerate(self.rules):
            if rule.holds_for(source):
                changes += self._step(index, rule, frame)
        return changes

    def finish(self, source: str | None = None) -> list[Event]:
        """Return the events that end because their source does, or all of them; the source is forgotten."""
        changes: list[Event] = []
        for name in list(self._spans) if source is None else [source]:
            for rule, spans in zip(self.rules, self._spans.pop(name, []), strict=False):
                changes += [_event(rule, name, track, span, True) for track, span in spans.items() if _counts(span)]
            self._dead_until.pop(name, None)
            self._now.pop(name, None)
        return changes

    def _step(self, index: int, rule: Rule, frame: TrackedFrame) -> list[Event]:
        source, now = frame.video_id, frame.seconds
        spans = self._spans[source][index]
        found, scores = self._people(rule, frame)
        over: list[tuple[Track, _Span]] = []
        for track, span in spans.items():
            score = scores.get(track, -math.inf)
            is_lost = now - span.last > rule.lost_seconds + EXACT
            if not is_lost and score >= rule.end_score:
                span.last, span.score = now, max(span.score, score)
            elif is_lost or track in found:
                over.append((track, span))
        for track, _ in over:
            del spans[track]
        changes = [_event(rule, source, track, span, True) for track, span in over if _counts(span)]
        for event in changes:
            self._begin_dead_time(index, source, event.end)
        for track, score in scores.items():
            is_dead = now < self._dead_until[source][index] - EXACT
            if track not in spans and score >= rule.start_score and not is_dead:
                spans[track] = _Span(now, now, score)
        for track, span in spans.items():
            lasted = span.last == now and now - span.start >= rule.shortest_seconds - EXACT
            if span.number is None and lasted and not _may_be_dead_time(rule, span, spans):
                span.number = next(self._numbers)
                changes.append(_event(rule, source, track, span, False))
        return changes

    def _people(self, rule: Rule, frame: TrackedFrame) -> tuple[set[Track], dict[Track, float]]:
        """Return who is in the frame, and the action's scores of those who are in the zone."""
        found: set[Track] = set()
        scores: dict[Track, float] = {}
        for person in frame.people:
            if person.person_score < self.person_threshold:
                continue
            found.add(person.track)
            if rule.zone is None or contains(rule.zone, place(person.box, frame.size, rule.placed_by)):
                score = person.actions[rule.action]
                scores[person.track] = max(score, scores.get(person.track, -math.inf))
        return found, scores

    def _begin_dead_time(self, index: int, source: str, end: float | None) -> None:
        """Start the pause after an event; spans that began in it and are no events yet are dropped."""
        assert end is not None
        until = end + self.rules[index].dead_seconds
        self._dead_until[source][index] = max(until, self._dead_until[source][index])
        spans = self._spans[source][index]
        for track in [track for track, span in spans.items() if not _counts(span) and end < span.start < until - EXACT]:
            del spans[track]


def _counts(span: _Span) -> bool:
    """Return whether a span has become an event."""
    return span.number is not None


def _may_be_dead_time(rule: Rule, span: _Span, spans: dict[Track, _Span]) -> bool:
    """Return whether a span began in the pause after an event that may already be over."""
    return any(_counts(other) and other.last < span.start < other.last + rule.dead_seconds for other in spans.values())


def _event(rule: Rule, source: str, track: Track, span: _Span, is_over: bool) -> Event:
    assert span.number is not None
    return Event(span.number, rule, source, track, span.start, span.last if is_over else None, span.score)
