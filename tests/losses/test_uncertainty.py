"""Weights of tasks: exp(-s) L + s by hand, its optimum, and what stays fixed."""

from math import exp, log

import pytest
import torch

from lightning_modules.losses.uncertainty import LOG_VARIANCE_RANGE, TaskWeighting


def learned(weight: float = 1.0, **kwargs) -> TaskWeighting:
    """One learned task."""
    return TaskWeighting({"task": weight}, pinned=(), frozen_until=0, **kwargs)


def test_value_and_gradients_of_a_learned_task():
    weighting, loss = learned(0.5), torch.tensor(3.0, requires_grad=True)  # s = ln 2
    total, weights = weighting({"task": loss})
    total.backward()
    assert total.item() == pytest.approx(0.5 * 3 + log(2))
    assert weights["task"].item() == pytest.approx(0.5)
    assert loss.grad.item() == pytest.approx(0.5)
    assert weighting.log_variances["task"].grad.item() == pytest.approx(1 - 0.5 * 3)


@pytest.mark.parametrize("loss", [0.3, 2.0, 40.0])
def test_the_optimum_is_the_logarithm_of_the_loss(loss):
    weighting = learned()
    optimizer = torch.optim.SGD(weighting.parameters(), lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        weighting({"task": torch.tensor(loss)})[0].backward()
        optimizer.step()
    assert weighting.log_variances["task"].item() == pytest.approx(log(loss), abs=1e-3)


@pytest.mark.parametrize(("start", "bound"), [(-9.0, LOG_VARIANCE_RANGE[0]), (9.0, LOG_VARIANCE_RANGE[1])])
def test_learned_weights_stay_within_their_range(start, bound):
    weighting = learned()
    with torch.no_grad():
        weighting.log_variances["task"].fill_(start)
    total, weights = weighting({"task": torch.tensor(2.0)})
    assert weights["task"].item() == pytest.approx(exp(-bound))
    assert total.item() == pytest.approx(2 * exp(-bound) + bound)


@pytest.mark.parametrize(("start", "loss"), [(-9.0, 2.0), (9.0, 2.0)])
def test_a_weight_driven_out_of_its_range_comes_back(start, loss):
    weighting = learned()
    optimizer = torch.optim.SGD(weighting.parameters(), lr=0.1)
    with torch.no_grad():
        weighting.log_variances["task"].fill_(start)
    for _ in range(200):
        optimizer.zero_grad()
        weighting({"task": torch.tensor(loss)})[0].backward()
        optimizer.step()
    assert weighting.log_variances["task"].item() == pytest.approx(log(loss), abs=1e-3)


def test_pinned_tasks_keep_their_weight_and_have_no_parameter():
    weighting = TaskWeighting({"detection": 2.0, "features": 1.0}, frozen_until=0)
    assert set(weighting.log_variances) == {"features"}
    losses = {"detection": torch.tensor(3.0), "features": torch.tensor(5.0)}
    total, weights = weighting(losses)
    assert weights["detection"] == 2
    assert total.item() == pytest.approx(2 * 3 + 5)


def test_fixed_weights_learn_nothing():
    weighting = TaskWeighting({"detection": 2.0, "features": 0.5}, weighting="fixed")
    assert list(weighting.parameters()) == []
    total, weights = weighting({"detection": torch.tensor(3.0), "features": torch.tensor(5.0)})
    assert total.item() == pytest.approx(2 * 3 + 0.5 * 5)
    assert {name: weight.item() for name, weight in weights.items()} == {"detection": 2.0, "features": 0.5}


def test_learned_weights_are_frozen_early_in_training():
    weighting = TaskWeighting({"task": 0.5}, pinned=(), frozen_until=0.1)
    for progress, moves in ((0.0, False), (0.09, False), (0.1, True), (1.0, True)):
        weighting.zero_grad()
        loss = torch.tensor(3.0, requires_grad=True)
        total, _ = weighting({"task": loss}, progress)
        total.backward()
        assert total.item() == pytest.approx(0.5 * 3 + log(2))  # the value does not jump
        assert loss.grad.item() == pytest.approx(0.5)
        assert bool(weighting.log_variances["task"].grad) == moves


def test_reported_weights_carry_no_gradient():
    _, weights = TaskWeighting({"detection": 1.0, "features": 1.0}, frozen_until=0)(
        {"detection": torch.ones((), requires_grad=True), "features": torch.ones((), requires_grad=True)}
    )
    assert not any(weight.requires_grad for weight in weights.values())


@pytest.mark.parametrize("names", [("detection",), ("detection", "features", "boxes")])
def test_tasks_without_a_weight_and_weights_without_a_task_are_named(names):
    weighting = TaskWeighting({"detection": 1.0, "features": 1.0})
    odd_one = ({"detection", "features"} ^ set(names)).pop()
    with pytest.raises(ValueError, match=rf"only on one side: \['{odd_one}'\]"):
        weighting({name: torch.ones(()) for name in names})


@pytest.mark.parametrize("weight", [0.001, 50.0])
def test_a_learned_weight_that_would_be_cut_to_its_range_is_refused_and_a_fixed_one_is_not(weight):
    with pytest.raises(ValueError, match=r"within 0.0067 and 20, got \{'features'"):
        TaskWeighting({"detection": weight, "features": weight})
    assert TaskWeighting({"features": weight}, "fixed").fixed == {"features": weight}


@pytest.mark.parametrize("weight", [0.0, -1.0])
def test_a_weight_must_be_above_zero(weight):
    with pytest.raises(ValueError, match="leave a task out"):
        TaskWeighting({"detection": 1.0, "features": weight})
