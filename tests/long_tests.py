"""Plugin of pytest that keeps ``make check`` quick: tests that take long and are not marked ``slow`` are named."""

from __future__ import annotations

import os

import pytest

LIMIT_SECONDS = 1.5
"""Of processor time, children and fixtures included: a busy machine changes it little."""
PROPERTY = "processor_seconds"
BEGAN = pytest.StashKey[float]()


def processor_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    item.stash[BEGAN] = processor_seconds()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    if call.when == "teardown":
        item.user_properties.append((PROPERTY, processor_seconds() - item.stash[BEGAN]))
    return (yield)


def pytest_terminal_summary(terminalreporter):
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    long = {
        report.nodeid: seconds
        for report in reports
        if getattr(report, "when", None) == "teardown" and "slow" not in report.keywords
        for seconds in [dict(report.user_properties).get(PROPERTY, 0)]
        if seconds > LIMIT_SECONDS
    }
    if long:
        terminalreporter.section(f"more than {LIMIT_SECONDS} s of processor time, but not marked slow")
        for name, seconds in sorted(long.items(), key=lambda entry: -entry[1]):
            terminalreporter.write_line(f"{seconds:6.1f} s {name}")
