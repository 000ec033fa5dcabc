"""Reading, checking and placing weights."""

import pickle
import re

import pytest
import torch
from torch import nn

from datamodules.errors import UserError
from lightning_modules.networks.weights.loading import (
    KEYS_SHOWN,
    load_exactly,
    load_weights,
    read_state_dict,
    read_weights,
    save_weights,
)


class Payload:
    """Writes a file where it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def network() -> nn.Module:
    return nn.ModuleDict({"body": nn.Linear(3, 4), "head": nn.Linear(4, 2), "norm": nn.BatchNorm1d(2)})


def test_weights_travel_through_a_file_in_half_precision(tmp_path):
    net, path = network(), tmp_path / "deep" / "weights.pt"
    save_weights(net.state_dict(), path)
    weights = read_state_dict(path)
    assert weights.keys() == net.state_dict().keys()
    for key, value in net.state_dict().items():
        if value.is_floating_point():
            assert weights[key].dtype == torch.float32
            torch.testing.assert_close(weights[key], value.half().float(), rtol=0, atol=0)


def test_whole_numbers_stay_whole_and_exact_through_a_file(tmp_path):
    net, path = network(), tmp_path / "weights.pt"
    net["norm"].num_batches_tracked.fill_(100_001)
    save_weights(net.state_dict(), path)
    counted = read_state_dict(path)["norm.num_batches_tracked"]
    assert counted.dtype == torch.int64 and counted == 100_001


def test_of_a_checkpoint_only_the_named_part_is_read_and_loses_its_prefix(tmp_path):
    state = {
        "network.body.weight": torch.ones(2),
        "loss.scale": torch.zeros(1),
        "teacher.network.body.weight": torch.ones(1),
    }
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "last.ckpt")
    weights = read_state_dict(tmp_path / "last.ckpt")
    assert list(weights) == ["body.weight"] and torch.equal(weights["body.weight"], torch.ones(2))
    assert list(read_state_dict(tmp_path / "last.ckpt", prefix="loss.")) == ["scale"]


def test_a_file_that_would_execute_something_is_refused_by_name_and_executes_nothing(tmp_path):
    trace = tmp_path / "executed"
    for name, save in (
        ("saved.pt", torch.save),
        ("pickled.pt", lambda obj, path: path.write_bytes(pickle.dumps(obj, 2))),
    ):
        save({"weight": torch.ones(1), "payload": Payload(str(trace))}, tmp_path / name)
        with pytest.raises(ValueError, match=rf"{re.escape(name)} holds more than tensors"):
            read_state_dict(tmp_path / name)
    assert not trace.exists()


@pytest.mark.parametrize("content", [{}, {"a": 3}, [torch.ones(1)], {"state_dict": {"other.a": torch.ones(1)}}])
def test_a_file_without_weights_is_refused_by_name(tmp_path, content):
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match=r"odd\.pt: holds no weights"):
        read_state_dict(tmp_path / "odd.pt")


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r"absent\.pt"):
        read_state_dict(tmp_path / "absent.pt")


def test_what_fits_is_loaded():
    ours, theirs = network(), network()
    load_exactly(ours, theirs.state_dict())
    assert all(torch.equal(value, ours.state_dict()[key]) for key, value in theirs.state_dict().items())


def test_an_error_lists_what_is_missing_left_over_misshapen_and_unused_and_loads_nothing():
    ours = network()
    before = {key: value.clone() for key, value in ours.state_dict().items()}
    weights = {key: torch.zeros_like(value) for key, value in before.items()}
    del weights["body.bias"]
    weights["tail.weight"] = torch.zeros(1)
    weights["head.weight"] = torch.zeros(5, 4)
    with pytest.raises(ValueError) as error:
        load_exactly(ours, weights, fresh=["norm.*", "nothing.*"])
    for part in (
        "missing (1): body.bias",
        "left over (1): tail.weight",
        "misshapen (1): head.weight: (5, 4) in the file, (2, 4) in the network",
        "patterns of fresh parameters that match nothing (1): nothing.*",
    ):
        assert part in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in ours.state_dict().items())


def test_weights_of_another_network_are_refused_with_the_name_of_their_file(tmp_path):
    save_weights(nn.Linear(2, 3).state_dict(), tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"other\.pt: the weights do not fit the network; missing \(\d+\): body.bias"):
        load_weights(network(), tmp_path / "other.pt")


def test_fresh_parameters_keep_their_values_with_or_without_weights_in_the_file():
    ours, theirs = network(), network()
    kept = ours["head"].weight.clone()
    weights = theirs.state_dict()
    weights["head.weight"] = torch.zeros(9, 9)  # of other classes
    del weights["head.bias"]
    load_exactly(ours, weights, fresh=["head.*"])
    assert torch.equal(ours["head"].weight, kept) and torch.equal(ours["body"].weight, theirs["body"].weight)


def test_long_lists_are_cut_short_with_their_number():
    net = nn.ModuleList(nn.Linear(1, 1) for _ in range(KEYS_SHOWN))
    with pytest.raises(ValueError, match=rf"missing \({2 * KEYS_SHOWN}\): .*, \.\.\."):
        load_exactly(net, {})


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_weights_that_are_saved_without_a_card_are_read_whatever_the_ending(tmp_path, ending):
    state, path = network().state_dict(), tmp_path / f"weights.{ending}"
    save_weights(state, path)
    read, card = read_weights(path)
    assert card is None and read.keys() == state.keys()
    floats = {name: value for name, value in state.items() if value.is_floating_point()}
    assert all(torch.equal(read[name], value.half().float()) for name, value in floats.items())
