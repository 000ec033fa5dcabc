"""Rules as files and configs hold them: what is read, and which mistakes are told with the way out."""

from pathlib import Path

import pytest

from callbacks.events.rules import Rule, check_actions, read_rules
from datamodules.errors import UserError
from datamodules.puppets.actions import CLASS_NAMES

ROOT = Path(__file__).resolve().parents[3]
FILE = """
zones:
  door: [[0, 0.5], [0.5, 0.5], [0.5, 1], [0, 1]]
rules:
  - {action: wave, start_score: 0.7, end_score: 0.4, shortest_seconds: 1, zone: door, dead_seconds: 10}
  - {name: anywhere, action: wave, placed_by: centre, lost_seconds: 0.5, sources: cam*}
"""


def test_a_file_and_its_content_give_the_same_rules(tmp_path):
    file = tmp_path / "rules.yaml"
    file.write_text(FILE)
    door = ((0.0, 0.5), (0.5, 0.5), (0.5, 1.0), (0.0, 1.0))
    expected = (
        Rule("wave", "wave", 0.7, 0.4, 1.0, door, "door", "foot", 10.0),
        Rule("wave", "anywhere", placed_by="centre", lost_seconds=0.5, sources=("cam*",)),
    )
    assert read_rules(str(file)) == read_rules(FILE) == expected


def test_rules_may_stand_in_a_config_with_zones_in_them():
    (rule,) = read_rules([{"action": "fall", "start_score": 0.8, "zone": [[0, 0], [1, 0], [1, 1]]}])
    assert rule == Rule("fall", "fall", 0.8, 0.8, zone=((0.0, 0.0), (1.0, 0.0), (1.0, 1.0)))


def test_a_rule_without_an_end_score_ends_below_its_start_score():
    assert read_rules([{"action": "fall", "start_score": 0.3}])[0].end_score == 0.3
    with pytest.raises(UserError, match=r"rule 1: end_score: is 0.5, above start_score 0.3; lower it"):
        read_rules([{"action": "fall", "start_score": 0.3, "end_score": 0.5}])


def test_sources_are_chosen_by_patterns():
    (rule,) = read_rules([{"action": "a", "sources": ["cam_?", "yard"]}])
    assert [name for name in ("cam_1", "cam_12", "yard", "yard2") if rule.holds_for(name)] == ["cam_1", "yard"]
    assert read_rules([{"action": "a"}])[0].holds_for("anything")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"action": "a", "treshold": 1}, "rules: rule 1: there is no key 'treshold'; there are action, name"),
        ({"action": "a", "strat_score": 1}, "rules: rule 1: there is no key 'strat_score'; did you mean start_score?"),
        ({"start_score": 1}, "rules: rule 1: action: must name an action"),
        ({"action": "a", "start_score": 1.5}, "start_score: must be a number from 0 to 1, got 1.5"),
        ({"action": "a", "start_score": True}, "start_score: must be a number from 0 to 1, got True"),
        ({"action": "a", "dead_seconds": -1}, "dead_seconds: must be seconds, 0 or more, got -1"),
        ({"action": "a", "lost_seconds": float("nan")}, "lost_seconds: must be seconds, 0 or more, got nan"),
        ({"action": "a", "shortest_seconds": "1 s"}, "shortest_seconds: must be seconds, 0 or more, got '1 s'"),
        ({"action": "a", "zone": "dor"}, "zone: there is no zone 'dor'; did you mean door?"),
        ({"action": "a", "zone": [[0, 0], [2, 0], [1, 1]]}, "zone: corners are [x, y] in fractions"),
        ({"action": "a", "placed_by": "foots"}, "placed_by: is 'foots', none of foot, centre; did you mean foot?"),
        ({"action": "a", "sources": []}, "sources: must be a list of names, got []"),
        ("wave", "rule 1: must be keys and values, got 'wave'"),
    ],
)
def test_a_mistake_in_a_rule_is_told_with_its_place(row, message):
    with pytest.raises(UserError) as refused:
        read_rules({"zones": {"door": [[0, 0], [1, 0], [1, 1]]}, "rules": [row]})
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rule": []}, "there is no key 'rule'; did you mean rules?"),
        ({"rules": []}, "holds no rules"),
        ({}, "holds no rules"),
        ({"zones": [1], "rules": [{"action": "a"}]}, "zones are names with a polygon each"),
        ({"zones": {"z": [[0, 0]]}, "rules": [{"action": "a"}]}, "rules: zones.z: a zone has at least three corners"),
        ([{"action": "a"}, {"action": "a"}], "two rules are called 'a'; give each its own name"),
        ("rules: [\n", "rules: is no YAML"),
        ("nowhere.yaml", "nowhere.yaml: no such file of rules"),
    ],
)
def test_a_mistake_in_the_whole_is_told(given, message):
    with pytest.raises(UserError) as refused:
        read_rules(given)
    assert message in str(refused.value)


def test_a_misspelt_action_is_refused_with_the_nearest():
    check_actions(read_rules([{"action": "walk"}]), ["run", "walk"])
    with pytest.raises(UserError, match=r"rule 'wlak': the network knows no action 'wlak'; did you mean walk\?"):
        check_actions(read_rules([{"action": "wlak"}]), ["run", "walk"])


def test_the_example_is_about_actions_of_puppets():
    rules = read_rules(str(ROOT / "configs" / "events" / "example.yaml"))
    check_actions(rules, CLASS_NAMES)
    assert [(rule.name, rule.zone is None) for rule in rules] == [("waves", True), ("walks on the left", False)]
