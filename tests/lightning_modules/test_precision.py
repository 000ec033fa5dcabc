"""A precision that the processor would take a hundred times as long in is replaced, told and recorded."""

import warnings

import pytest
import torch

from lightning_modules import precision as module
from lightning_modules.commands.precision import cpu_computes_bfloat16, useful_precision


@pytest.fixture
def machine(monkeypatch):
    """Sets what the machine has: ``machine(gpu=..., bfloat16=...)``."""

    def has(*, gpu: bool, bfloat16: bool) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        monkeypatch.setattr(module, "cpu_computes_bfloat16", lambda: bfloat16)

    return has


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16", "bf16-true"])
def test_bfloat16_becomes_float32_on_a_processor_without_it_and_that_is_told(machine, precision):
    machine(gpu=False, bfloat16=False)
    with pytest.warns(UserWarning, match=f"no bfloat16 arithmetic .* {precision} would .*: running in 32-true"):
        assert useful_precision(precision, "auto") == "32-true"


@pytest.mark.parametrize(
    ("gpu", "bfloat16", "accelerator", "precision"),
    [
        (False, True, "auto", "bf16-mixed"),
        (True, False, "auto", "bf16-mixed"),
        (True, False, "gpu", "bf16-true"),
        (True, False, "auto", "16-mixed"),
        (False, False, "auto", "32-true"),
        (False, False, "cpu", 32),
        (False, False, "auto", None),
    ],
)
def test_what_the_machine_computes_quickly_stays(machine, gpu, bfloat16, accelerator, precision):
    machine(gpu=gpu, bfloat16=bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert useful_precision(precision, accelerator) == precision


def test_the_cpu_beside_a_gpu_is_asked_when_it_is_the_one_that_runs(machine):
    machine(gpu=True, bfloat16=False)
    with pytest.warns(UserWarning, match="running in 32-true"):
        assert useful_precision("bf16-mixed", "cpu") == "32-true"


@pytest.mark.parametrize("precision", ["16-mixed", "16-true", 16])
def test_half_precision_on_a_cpu_is_an_error_with_the_way_out(machine, precision):
    machine(gpu=False, bfloat16=True)
    with pytest.raises(ValueError, match=r"set --trainer\.precision=bf16-mixed"):
        useful_precision(precision, "auto")


def test_a_processor_with_bfloat16_products_is_known_by_its_speed():
    """Native or not, the two differ by two orders of magnitude, so a coarse timing tells them apart."""
    from timeit import repeat

    square = torch.randn(384, 384)
    half = square.bfloat16()
    fast, slow = (min(repeat(lambda part=part: part @ part, number=1, repeat=3)) for part in (square, half))
    assert cpu_computes_bfloat16() == (slow < 12 * fast)
