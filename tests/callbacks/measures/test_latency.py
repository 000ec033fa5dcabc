"""Latency under a clock that the test turns itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from callbacks.measures.latency import Latency, interleave, measure_latency, synchronizer


class FakeDevice:
    """A clock in seconds and a device that works on its own until it is waited for."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pending = 0.0
        self.calls: list[str] = []

    def clock(self) -> float:
        return self.now

    def synchronize(self) -> None:
        self.now += self.pending
        self.pending = 0.0

    def step(self, *durations: float, name: str = "step"):
        """A step that returns at once and leaves the device busy, for as long as the next of ``durations`` says."""
        remaining = iter(durations)

        def run() -> None:
            self.calls.append(name)
            self.pending += next(remaining)

        return run


@pytest.fixture
def device():
    return FakeDevice()


def test_work_left_on_the_device_is_inside_the_measurement(device):
    latency = measure_latency(
        device.step(0.002, 0.004), warmup=0, repeats=2, synchronize=device.synchronize, clock=device.clock
    )
    assert latency.samples == pytest.approx((2, 4))


def test_work_from_before_is_outside_the_measurement(device):
    device.pending = 60.0
    latency = measure_latency(
        device.step(0.002), warmup=0, repeats=1, synchronize=device.synchronize, clock=device.clock
    )
    assert latency.p50_ms == pytest.approx(2)


def test_warmup_runs_and_is_excluded(device):
    step = device.step(9.0, 8.0, 0.001, 0.003)
    latency = measure_latency(step, warmup=2, repeats=2, synchronize=device.synchronize, clock=device.clock)
    assert len(device.calls) == 4
    assert latency.samples == pytest.approx((1, 3))


def test_percentiles_interpolate_linearly():
    durations = np.random.default_rng(0).exponential(0.01, 37)
    latency = Latency.from_seconds(durations.tolist())
    expected = np.percentile(durations * 1e3, [50, 95, 99])
    assert (latency.p50_ms, latency.p95_ms, latency.p99_ms) == pytest.approx(tuple(expected))
    assert latency.mean_ms == pytest.approx(durations.mean() * 1e3)


def test_percentiles_of_four_samples_by_hand():
    latency = Latency.from_seconds([0.004, 0.001, 0.003, 0.002])
    assert latency.p50_ms == pytest.approx(2.5)
    assert latency.p95_ms == pytest.approx(3 + 0.85)  # 0.95 * 3 = 2.85 places after the first
    assert latency.frames_per_second == pytest.approx(400)
    assert latency.samples == pytest.approx((4, 1, 3, 2))


def test_one_sample_is_every_percentile():
    latency = Latency.from_seconds([0.005])
    assert latency.p50_ms == latency.p99_ms == latency.mean_ms == pytest.approx(5)


def test_interleaved_steps_take_turns_and_are_compared_with_the_first(device):
    steps = {
        "teacher": device.step(*[0.008] * 4, name="teacher"),
        "student": device.step(5.0, 0.001, 0.002, 0.003, name="student"),
    }
    result = interleave(steps, rounds=3, warmup=1, synchronize=device.synchronize, clock=device.clock)
    assert device.calls == ["teacher", "student"] * 4
    assert result.latencies["student"].samples == pytest.approx((1, 2, 3))
    assert result.ratios == pytest.approx({"teacher": 1, "student": 4})


def test_untimed_calls_of_a_step_precede_each_timed_one(device):
    steps = {
        "one": device.step(9.0, 0.001, 9.0, 0.002, name="one"),
        "other": device.step(9.0, 0.003, 9.0, 0.004, name="other"),
    }
    result = interleave(steps, rounds=2, warmup=0, synchronize=device.synchronize, clock=device.clock, untimed=1)
    assert device.calls == ["one", "one", "other", "other"] * 2
    assert result.latencies["one"].samples == pytest.approx((1, 2))
    assert result.latencies["other"].samples == pytest.approx((3, 4))


def test_what_shows_progress_is_called_after_each_call_and_not_timed(device):
    ticks = []

    def tick() -> None:
        ticks.append(list(device.calls))
        device.step(9.0, name="tick")()

    step = device.step(0.001, 0.002, name="step")
    result = interleave(
        {"step": step}, rounds=1, warmup=1, synchronize=device.synchronize, clock=device.clock, tick=tick
    )
    assert ticks == [["step"], ["step", "tick", "step"]]
    assert result.latencies["step"].samples == pytest.approx((2,))


def test_wrong_arguments_are_refused(device):
    for steps, rounds, warmup in (({}, 1, 0), ({"a": device.step()}, 0, 0), ({"a": device.step()}, 1, -1)):
        with pytest.raises(ValueError):
            interleave(steps, rounds=rounds, warmup=warmup, synchronize=device.synchronize, clock=device.clock)


def test_a_device_that_cannot_be_waited_for_is_refused():
    assert synchronizer("cpu")() is None
    with pytest.raises(ValueError, match="meta"):
        synchronizer("meta")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_waited_for():
    matrix = torch.rand(8192, 8192, device="cuda")
    wait = synchronizer("cuda")
    waited = measure_latency(lambda: matrix @ matrix, warmup=3, repeats=5, synchronize=wait)
    launched = measure_latency(lambda: matrix @ matrix, warmup=3, repeats=5, synchronize=lambda: None)
    assert waited.p50_ms > 2 * launched.p50_ms
