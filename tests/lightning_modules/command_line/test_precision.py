"""On a CPU bfloat16 is taken where it is measured to be faster; what is chosen is said and recorded."""

import logging
import os
from itertools import count

import pytest
import torch

from lightning_modules.command_line import precision as module
from lightning_modules.command_line.precision import (
    CHOSEN,
    ProductTimes,
    cpu_computes_bfloat16,
    measured_products,
    useful_precision,
)

FASTER, SLOWER = ProductTimes(float32_ms=2.5, bfloat16_ms=1.25), ProductTimes(float32_ms=1.25, bfloat16_ms=2.5)


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Sets what the machine has: ``machine(gpu=..., bfloat16=...)``; a processor with bfloat16 alone at first."""
    monkeypatch.delenv(CHOSEN, raising=False)

    def has(*, gpu: bool = False, bfloat16: bool = True) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        monkeypatch.setattr(module, "cpu_computes_bfloat16", lambda: bfloat16)

    has()
    yield has
    os.environ.pop(CHOSEN, None)


def never() -> ProductTimes:
    raise AssertionError("measured although nothing depends on it")


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16", "bf16-true"])
@pytest.mark.parametrize(("times", "is_taken"), [(FASTER, True), (SLOWER, False), (ProductTimes(2.0, 2.0), False)])
def test_bfloat16_is_taken_where_a_product_is_faster_in_it(precision, times, is_taken):
    assert useful_precision(precision, "auto", lambda: times) == (precision if is_taken else "32-true")


@pytest.mark.parametrize(
    ("times", "line"),
    [
        (
            FASTER,
            "precision bf16-mixed: on this CPU a product of 512 x 512 matrices takes 1.2 ms in bfloat16, 2.5 ms in "
            "float32",
        ),
        (
            SLOWER,
            "precision 32-true instead of bf16-mixed: on this CPU a product of 512 x 512 matrices takes 2.5 ms in "
            "bfloat16, 1.2 ms in float32",
        ),
    ],
)
def test_one_line_says_what_is_chosen_and_why(times, line, caplog):
    caplog.set_level(logging.INFO)
    useful_precision("bf16-mixed", "cpu", lambda: times)
    assert [record.getMessage() for record in caplog.records] == [line]


def test_without_bfloat16_arithmetic_nothing_is_measured(machine, caplog):
    caplog.set_level(logging.INFO)
    machine(bfloat16=False)
    assert useful_precision("bf16-mixed", "auto", never) == "32-true"
    assert "32-true instead of bf16-mixed: this processor has no bfloat16" in caplog.text


@pytest.mark.parametrize(
    ("gpu", "accelerator", "precision"),
    [
        (True, "auto", "bf16-mixed"),
        (True, "gpu", "bf16-true"),
        (True, "auto", "16-mixed"),
        (False, "auto", "32-true"),
        (False, "cpu", 32),
        (False, "auto", None),
        (False, "cpu", "64-true"),
    ],
)
def test_other_precisions_and_other_devices_are_left_alone_unmeasured(machine, caplog, gpu, accelerator, precision):
    caplog.set_level(logging.INFO)
    machine(gpu=gpu)
    assert useful_precision(precision, accelerator, never) == precision
    assert not caplog.records


def test_the_cpu_beside_a_gpu_is_measured_when_it_is_the_one_that_runs(machine):
    machine(gpu=True)
    assert useful_precision("bf16-mixed", "cpu", lambda: SLOWER) == "32-true"


def test_processes_that_the_first_one_starts_compute_as_it_does(monkeypatch):
    assert useful_precision("bf16-mixed", "cpu", lambda: SLOWER) == "32-true"
    monkeypatch.setattr("lightning.pytorch.utilities.rank_zero_only.rank", 1)
    assert useful_precision("bf16-mixed", "cpu", never) == "32-true"


@pytest.mark.parametrize("precision", ["16-mixed", "16-true", 16])
def test_half_precision_on_a_cpu_is_an_error_with_the_way_out(precision):
    with pytest.raises(ValueError, match=r"set --trainer\.precision=bf16-mixed"):
        useful_precision(precision, "auto", never)


def test_the_best_of_some_rounds_counts_and_the_first_products_do_not():
    ticks = count()
    # The clock is read twice a product. The second product after the preparation, in bfloat16, seems to take longest.
    seconds = [0, 9, 0, 9, 0, 0.5, 0, 0.25] + [0, 1] * 20
    assert measured_products(lambda: seconds[next(ticks)]) == ProductTimes(500.0, 250.0)


@pytest.mark.skipif(not cpu_computes_bfloat16(), reason="takes seconds on a processor without bfloat16 arithmetic")
def test_a_measurement_takes_some_milliseconds():
    times = measured_products()
    assert 0 < times.float32_ms < 1000 and 0 < times.bfloat16_ms < 1000
