"""Events of rules, exactly: hysteresis, durations, dead times, zones, lost people, ends of streams, many sources."""

from __future__ import annotations

import random

import pytest

from callbacks.events.machine import EventMachine
from callbacks.events.rules import read_rules
from tests.callbacks.events.scenes import frame, person


def machine(**rule) -> EventMachine:
    return EventMachine(read_rules([{"action": "wave", **rule}]))


def told(changes) -> list[tuple]:
    """Number, track, start, end and highest score."""
    return [(event.number, event.track, event.start, event.end, event.score) for event in changes]


def run(events: EventMachine, scores, step: float = 0.25, finish: bool = False) -> list[tuple]:
    """Events of one person with these scores; None is a frame without the person."""
    found = []
    for number, score in enumerate(scores):
        people = () if score is None else (person(score),)
        found += told(events.add(frame(number * step, *people)))
    return found + (told(events.finish()) if finish else [])


def test_an_event_begins_at_the_start_score_and_ends_with_the_last_frame_at_the_end_score():
    found = run(machine(start_score=0.6, end_score=0.4), [0.59, 0.6, 0.4, 0.7, 0.5, 0.39, 0.5, 0.59])
    assert found == [(0, 0, 0.25, None, 0.6), (0, 0, 0.25, 1.0, 0.7)]


def test_without_hysteresis_the_same_scores_are_more_events():
    found = run(machine(start_score=0.6), [0.59, 0.6, 0.4, 0.7, 0.5, 0.39])
    assert found == [(0, 0, 0.25, None, 0.6), (0, 0, 0.25, 0.25, 0.6), (1, 0, 0.75, None, 0.7), (1, 0, 0.75, 0.75, 0.7)]


def test_an_event_is_told_when_it_has_lasted_and_begins_where_it_began():
    scores = [0.9, 0.8, 0.7, 0.6, 0.9]  # 0.75 s at the fourth frame
    found = run(machine(shortest_seconds=0.75), scores, finish=True)
    assert found == [(0, 0, 0.0, None, 0.9), (0, 0, 0.0, 1.0, 0.9)]
    events = machine(shortest_seconds=0.75)
    counts = [len(events.add(frame(number * 0.25, person(0.9)))) for number in range(5)]
    assert counts == [0, 0, 0, 1, 0]


@pytest.mark.parametrize("interruption", [0.1, 0.49])
def test_what_is_too_short_is_no_event_however_often(interruption):
    scores = [0.9, 0.9, 0.9, interruption] * 5
    assert run(machine(shortest_seconds=0.75), scores, finish=True) == []


@pytest.mark.parametrize("step", [0.1, 1 / 3, 1 / 7, 1 / 30])
def test_durations_are_exact_although_time_stamps_are_sums(step):
    shortest = 9 * step
    events, now, begun = machine(shortest_seconds=shortest), 0.0, []
    for number in range(12):
        begun += [number] * len(events.add(frame(now, person(0.9))))
        now += step
    assert begun == [9]


def test_a_person_lost_for_a_moment_goes_on_and_for_longer_has_stopped_when_last_seen():
    bridged = run(machine(lost_seconds=0.5), [0.9, None, 0.8, None, None, None], step=0.25)
    assert bridged == [(0, 0, 0.0, None, 0.9), (0, 0, 0.0, 0.5, 0.9)]
    again = run(machine(lost_seconds=0.5), [0.9, None, None, None, 0.8], step=0.25, finish=True)
    assert again == [(0, 0, 0.0, None, 0.9), (0, 0, 0.0, 0.0, 0.9), (1, 0, 1.0, None, 0.8), (1, 0, 1.0, 1.0, 0.8)]


def test_a_person_hardly_recognised_counts_as_lost_not_as_standing_still():
    events = machine(lost_seconds=1.0)
    found = told(events.add(frame(0.0, person(0.9))))
    found += told(events.add(frame(0.5, person(0.1, sure=0.49))))
    found += told(events.add(frame(1.0, person(0.9))))
    assert found + told(events.finish()) == [(0, 0, 0.0, None, 0.9), (0, 0, 0.0, 1.0, 0.9)]


def test_a_hole_in_the_stream_ends_what_went_on_before_it():
    events = machine(shortest_seconds=1.0)
    for now in (0.0, 0.5):
        assert events.add(frame(now, person(0.9))) == []
    assert events.add(frame(60.0, person(0.9))) == []  # not 60 s of waving
    assert told(events.add(frame(61.0, person(0.9)))) == [(0, 0, 60.0, None, 0.9)]


def test_the_end_of_a_stream_ends_events_with_their_last_frame_and_drops_what_was_too_short():
    events = machine(shortest_seconds=0.5)
    events.add(frame(0.0, person(0.9, track=1)))
    begun = events.add(frame(0.5, person(0.7, track=1), person(0.8, track=2)))
    assert told(begun) == [(0, 1, 0.0, None, 0.9)]
    assert told(events.finish("cam")) == [(0, 1, 0.0, 0.5, 0.9)]
    assert events.finish() == []


def test_a_new_event_waits_for_the_dead_time_and_begins_after_it_although_the_action_goes_on():
    scores = [0.9, 0.1, 0.9, 0.1, 0.9, 0.9, 0.9]  # ends at 0.0, dead until 1.0
    found = run(machine(dead_seconds=1.0), scores, finish=True)
    assert found == [(0, 0, 0.0, None, 0.9), (0, 0, 0.0, 0.0, 0.9), (1, 0, 1.0, None, 0.9), (1, 0, 1.0, 1.5, 0.9)]


def test_the_dead_time_holds_for_everybody_but_not_for_who_had_begun_before():
    events = machine(dead_seconds=10.0)
    found = told(events.add(frame(0.0, person(0.9, track=1), person(0.8, track=2))))
    found += told(events.add(frame(1.0, person(0.1, track=1), person(0.8, track=2))))  # the first stops
    found += told(events.add(frame(2.0, person(0.1, track=1), person(0.8, track=2), person(0.9, track=3))))
    found += told(events.finish())
    begun = [(0, 1, 0.0, None, 0.9), (1, 2, 0.0, None, 0.8)]
    assert found == [*begun, (0, 1, 0.0, 0.0, 0.9), (1, 2, 0.0, 2.0, 0.8)]


def test_a_person_who_gets_another_number_is_one_event_with_a_dead_time():
    """Return whether the first is over shows only when it is lost; the second begins before that."""
    events = machine(dead_seconds=30.0, shortest_seconds=0.5, lost_seconds=2.0)
    found = []
    for number in range(40):
        found += told(events.add(frame(0.25 * number, person(0.9, track=1 if number < 8 else 2))))
    assert found + told(events.finish()) == [(0, 1, 0.0, None, 0.9), (0, 1, 0.0, 1.75, 0.9)]


def test_a_second_person_is_told_once_the_first_is_found_again():
    events = machine(dead_seconds=30.0, lost_seconds=2.0)
    found = told(events.add(frame(0.0, person(0.9, track=1))))
    found += told(events.add(frame(1.0, person(0.8, track=2))))  # is the first one over?
    assert found == [(0, 1, 0.0, None, 0.9)]
    found = told(events.add(frame(2.0, person(0.9, track=1), person(0.8, track=2))))
    assert found == [(1, 2, 1.0, None, 0.8)]


LEFT = [[0, 0], [0.5, 0], [0.5, 1], [0, 1]]


def standing_at(x: float) -> tuple[float, float, float, float]:
    """A box of a frame of 100x100 whose middle is at a fraction of the width."""
    return (100 * x - 10, 20.0, 100 * x + 10, 80.0)


def test_an_event_begins_at_the_edge_of_its_zone_and_ends_behind_it():
    events, found = machine(zone=LEFT), []
    for number, x in enumerate([0.75, 0.51, 0.5, 0.25, 0.5, 0.51, 0.9]):
        found += told(events.add(frame(float(number), person(0.9, box=standing_at(x)))))
    assert found == [(0, 0, 2.0, None, 0.9), (0, 0, 2.0, 4.0, 0.9)]


@pytest.mark.parametrize(("placed_by", "expected"), [("foot", 1), ("centre", 0)])
def test_a_zone_on_the_ground_holds_whose_feet_are_there(placed_by, expected):
    ground = [[0, 0.7], [1, 0.7], [1, 1], [0, 1]]
    assert len(machine(zone=ground, placed_by=placed_by).add(frame(0.0, person(0.9)))) == expected


def test_the_highest_score_is_that_of_the_zone():
    events = machine(zone=LEFT)
    events.add(frame(0.0, person(0.6, box=standing_at(0.2))))
    assert told(events.add(frame(1.0, person(0.99, box=standing_at(0.8))))) == [(0, 0, 0.0, 0.0, 0.6)]


def test_people_without_numbers_are_one_event_of_the_best():
    events = machine(start_score=0.6, end_score=0.4)
    found = told(events.add(frame(0.0, person(0.2, track=None), person(0.8, track=None))))
    found += told(events.add(frame(1.0, person(0.5, track=None), person(0.1, track=None))))
    found += told(events.add(frame(2.0, person(0.3, track=None))))
    assert found == [(0, None, 0.0, None, 0.8), (0, None, 0.0, 1.0, 0.8)]


def test_several_people_and_rules_keep_apart():
    events = EventMachine(read_rules([{"action": "wave"}, {"action": "walk", "start_score": 0.8}]))
    begun = events.add(frame(0.0, person(0.9, track=1), person(0.7, track=2), person(0.8, track=3, action="walk")))
    assert [(event.rule.name, event.track) for event in begun] == [("wave", 1), ("wave", 2), ("walk", 3)]
    over = events.add(frame(1.0, person(0.1, track=1), person(0.7, track=2), person(0.1, track=3, action="walk")))
    assert [(event.rule.name, event.number, event.track) for event in over] == [("wave", 0, 1), ("walk", 2, 3)]


def test_two_cameras_with_the_same_people_and_times_of_their_own_do_not_meet():
    """The events of one of them are the same whether the other is there or not."""
    rng = random.Random(0)
    rule = {"start_score": 0.6, "end_score": 0.4, "shortest_seconds": 0.5, "dead_seconds": 1.0, "lost_seconds": 0.7}
    films = {
        name: [frame(rate * n, person(rng.choice([0.1, 0.5, 0.7, 0.8, 0.9])), source=name) for n in range(300)]
        for name, rate in (("yard", 0.25), ("door", 0.1))
    }
    alone = {}
    for name, frames in films.items():
        events = machine(**rule)
        changes = [change for each in frames for change in events.add(each)] + events.finish()
        alone[name] = [told([change])[0][1:] for change in changes]
    events, together = machine(**rule), {"yard": [], "door": []}
    mixed = sorted([each for frames in films.values() for each in frames], key=lambda each: each.seconds)
    for change in [change for each in mixed for change in events.add(each)] + events.finish():
        together[change.source].append(told([change])[0][1:])
    assert together == alone and all(len(changes) > 10 for changes in alone.values())


def test_one_camera_ends_and_the_other_goes_on():
    events = machine()
    for source in ("yard", "door"):
        events.add(frame(0.0, person(0.9), source=source))
    assert [event.source for event in events.finish("yard")] == ["yard"]
    assert events.finish("yard") == events.finish("unknown") == []
    assert events.add(frame(1.0, person(0.9), source="door")) == []
    assert [(event.source, event.end) for event in events.finish()] == [("door", 1.0)]


def test_rules_of_one_camera_do_not_hold_for_another():
    events = machine(sources=["yard"])
    assert events.add(frame(0.0, person(0.9), source="door")) == []
    assert len(events.add(frame(0.0, person(0.9), source="yard"))) == 1


@pytest.mark.parametrize("seed", range(10))
def test_frame_rates_may_vary(seed):
    """An action from second 2 to 5 is the same event at any times of the frames, within one step at each end."""
    rng = random.Random(seed)
    times = [0.0]
    while times[-1] < 8:
        times.append(times[-1] + rng.choice([0.02, 0.05, 0.3, 0.7]))
    events, found = machine(shortest_seconds=1.0), []
    for now in times:
        found += events.add(frame(now, person(0.9 if 2 <= now <= 5 else 0.1)))
    begun, over = found
    during = [now for now in times if 2 <= now <= 5]
    assert (begun.start, begun.end) == (during[0], None)
    assert (over.start, over.end) == (during[0], during[-1])


def test_a_source_that_begins_anew_forgets_its_dead_time_and_ends_its_events():
    events = machine(dead_seconds=100.0)
    events.add(frame(50.0, person(0.9)))
    changes = told(events.add(frame(0.0, person(0.8))))
    assert changes == [(0, 0, 50.0, 50.0, 0.9), (1, 0, 0.0, None, 0.8)]


def test_what_is_remembered_does_not_grow_with_time():
    events = machine(shortest_seconds=0.5)
    for number in range(5000):
        events.add(frame(number * 0.25, person(0.9 if number % 4 else 0.1, track=number // 8)))
    assert len(events._spans["cam"][0]) < 10


@pytest.mark.parametrize("seed", range(20))
def test_events_agree_with_their_definition_applied_to_the_whole_film(seed):
    """A slow version for one person who is always found: runs by hysteresis, long enough, not too close."""
    rng = random.Random(seed)
    start, end, shortest, dead = 0.6, 0.4, rng.choice([0, 0.5, 1.0]), rng.choice([0, 1.0, 3.0])
    scores = [rng.choice([0.1, 0.45, 0.5, 0.62, 0.9, 0.9]) for _ in range(400)]
    expected, earliest, number = [], float("-inf"), 0
    while number < len(scores):
        if scores[number] < start or number * 0.25 < earliest:
            number += 1
            continue
        last = number
        while last + 1 < len(scores) and scores[last + 1] >= end:
            last += 1
        if (last - number) * 0.25 >= shortest:
            expected.append((number * 0.25, last * 0.25, max(scores[number : last + 1])))
            earliest = last * 0.25 + dead
        number = last + 1
    rule = {"start_score": start, "end_score": end, "shortest_seconds": shortest, "dead_seconds": dead}
    found = run(machine(**rule), scores, finish=True)
    assert [(begin, over, best) for _, _, begin, over, best in found if over is not None] == expected
    assert len(expected) > 5
