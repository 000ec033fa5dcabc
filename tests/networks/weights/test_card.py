"""Weights files that say how their network is built and what its frames must be like."""

from __future__ import annotations

import os
import re
from dataclasses import replace

import pytest
import torch
import yaml

from lightning_modules.networks.weights.card import Card
from lightning_modules.networks.weights.configured import build_network, load_network, network_of
from lightning_modules.networks.weights.loading import read_state_dict, read_weights, save_weights
from lightning_modules.networks.weights.old_names import renamed_from_old
from lightning_modules.networks.weights.take import main
from tests.networks.tiny import randomise, tiny_student
from tests.networks.weights.small import NETWORKS, SMALL, small_card, small_config


@pytest.fixture(scope="module")
def config() -> dict:
    return small_config()


@pytest.fixture
def card(config) -> Card:
    return small_card(config)


def test_a_network_is_rebuilt_from_its_file_alone(tmp_path, config, card):
    original = randomise(build_network(config)).eval()
    save_weights(original.state_dict(), tmp_path / "student.pt", card)
    network, read = load_network(tmp_path / "student.pt")
    assert read == card and not network.training
    assert network.timing == original.timing and network.timing.look_ahead == read.look_ahead
    original.load_state_dict({key: value.half().float() for key, value in original.state_dict().items()})
    frames = torch.randn(1, 5, 3, 64, 64)
    with torch.no_grad():
        ours, theirs = (net(frames, net.initial_state(1))[0] for net in (network, original))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_config_written_out_builds_what_the_file_describes(config):
    described = network_of(NETWORKS / "dsta_late_tiny.yaml", 10, SMALL)
    again = build_network(yaml.safe_load(yaml.safe_dump(config)))
    shapes, others = ({key: value.shape for key, value in net.state_dict().items()} for net in (described, again))
    assert shapes == others and again.size == described.size and again.memory.size == described.memory.size


@pytest.mark.parametrize("file", sorted(NETWORKS.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_network_of_the_configs_is_built(file):
    with torch.device("meta"):
        assert network_of(file, 7).num_classes == 7


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("class_path", "subprocess.Popen"),
        ("class_path", "torch.nn.Linear"),
        ("class_path", "lightning_modules.networks.detection.evad/../x.Y"),
        ("head", "os.system"),
        ("head", "/tmp/head.yaml"),
        ("trunk", {"class_path": "os.system", "init_args": {"command": "true"}}),
        ("class_path", "evil.StreamingDetector"),
        ("head", "lightning_modules.networks.weights.take.main"),  # ours, but no network
    ],
)
def test_a_card_that_names_anything_but_our_networks_is_refused_and_runs_nothing(config, place, value, monkeypatch):
    monkeypatch.setattr(os, "system", lambda *_: pytest.fail("it ran"))
    forged = {**config, "init_args": dict(config["init_args"])}
    (forged if place == "class_path" else forged["init_args"])[place] = value
    with pytest.raises(ValueError, match="a network's config may name nothing else"):
        build_network(forged)


def test_a_card_names_classes_that_may_move_to_other_modules(config, card):
    assert config["class_path"] == "StreamingDetector"
    moved = {**config, "class_path": "lightning_modules.networks.an.older.place.StreamingDetector"}
    assert Card.from_dict(replace(card, network=moved).to_dict()) == card
    assert type(build_network(moved)) is type(build_network(config))


def test_no_two_networks_have_one_name():
    classes = [
        f"{path}: {name}"
        for path in (NETWORKS.parents[1] / "lightning_modules" / "networks").rglob("*.py")
        for name in re.findall(r"^class ([A-Z]\w+)\(.*Module", path.read_text(), re.MULTILINE)
    ]
    names = [line.rpartition(" ")[2] for line in classes]
    assert len(names) > 20 and len(set(names)) == len(names), sorted(classes)


def test_arguments_that_a_network_does_not_take_are_named_in_one_line(config):
    with pytest.raises(ValueError, match=r"builds no network: .*colour") as raised:
        build_network({**config, "init_args": {**config["init_args"], "colour": "red"}})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda card: card.pop("classes"), "the card lacks classes"),
        (lambda card: card.update(colour="red"), "unknown entries colour"),
        (lambda card: card.update(frame_stride="2"), "the card's frame_stride is '2'"),
        (lambda card: card.update(frame_stride=True), "the card's frame_stride is True"),
        (lambda card: card.update(classes=["sit", 3]), "not names"),
        (lambda card: card.update(network="dsta"), "the card's network is 'dsta'"),
    ],
)
def test_a_damaged_card_is_refused_with_the_file_and_the_entry(tmp_path, card, change, problem):
    content = card.to_dict()
    change(content)
    torch.save({"state_dict": {"weight": torch.ones(1)}, "card": content}, tmp_path / "damaged.pt")
    with pytest.raises(ValueError, match=f"damaged.pt: .*{problem}"):
        read_weights(tmp_path / "damaged.pt")


def test_a_card_with_other_classes_than_its_network_is_refused(tmp_path, config, card):
    save_weights(build_network(config).state_dict(), tmp_path / "student.pt", replace(card, classes=("sit", "stand")))
    with pytest.raises(ValueError, match="its network has 3 classes, its card names 2"):
        load_network(tmp_path / "student.pt")


def test_a_file_without_a_card_is_read_as_weights_and_builds_no_network(tmp_path):
    save_weights({"weight": torch.ones(2)}, tmp_path / "plain.pt")
    weights, card = read_weights(tmp_path / "plain.pt")
    assert list(weights) == ["weight"] and card is None
    with pytest.raises(ValueError, match=r"plain\.pt: has no card"):
        load_network(tmp_path / "plain.pt")


def test_a_checkpoint_becomes_a_weights_file_with_a_card(tmp_path, config):
    network = build_network(config)
    state = {f"network.{key}": value for key, value in network.state_dict().items()}
    torch.save(
        {"state_dict": state | {"network.branch_head.weight": torch.ones(1)}, "epoch": 1}, tmp_path / "last.ckpt"
    )
    told = {"classes": ["sit", "stand", "walk"], "frame_stride": 2, "frame_rate": 16.0, "short_side": 128}
    told |= {"trained_on": "miniature", "commit": "0123abc", "network": config}
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(told))
    main([str(tmp_path / name) for name in ("last.ckpt", "taken.pt", "card.yaml")])
    found, card = load_network(tmp_path / "taken.pt")
    assert card.look_ahead == 3 and found.state_dict().keys() == network.state_dict().keys()


def with_old_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A student's or a teacher's parameters as files from before named them."""
    named = {}
    for key, value in state.items():
        key = key.removeprefix("head.").removeprefix("trunk.")
        named[key.replace(".attention.norm1", ".temporal.norm1").replace(".attention.", ".temporal.")] = value
    return named


@pytest.mark.parametrize("temporal", ["tsa", "dsta"])
def test_files_from_before_detectors_were_made_of_parts_are_read_under_todays_names(tmp_path, temporal):
    state = randomise(tiny_student(temporal)).state_dict()
    old = with_old_names(state)
    assert {"patch_embed.proj.weight", "blocks.1.temporal.attn.qkv.weight", "localizer.proposal_boxes"} <= old.keys()
    torch.save({"state_dict": {f"network.{key}": value for key, value in old.items()}}, tmp_path / "last.ckpt")
    found = read_state_dict(tmp_path / "last.ckpt")
    assert list(found) == list(state) and all(torch.equal(found[key], state[key]) for key in state)
    assert list(renamed_from_old(old)) == list(state)
