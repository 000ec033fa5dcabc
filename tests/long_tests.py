"""Plugin of pytest for tests that take long: those that are not marked ``slow`` are named, the longest files begin.

``make check`` stays quick by the one. By the other no process works alone at the end, since a process has a whole file.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

LIMIT_SECONDS = 1.5
"""Seconds of processor time, children and fixtures included: a busy machine changes it little."""
FOLDER = Path(__file__).resolve().parent
LONGEST = (
    "lightning_modules/commands/test_export_graph.py",
    "test_runs.py",
    "test_command_line.py",
    "test_ddp.py",
    "test_recipes.py",
    "lightning_modules/commands/test_quantization.py",
    "lightning_modules/runs/test_resuming.py",
    "test_documentation.py",
    "test_temporal_command_line.py",
    "results/benchmarks/accuracy/test_error_analysis.py",
    "results/experiments/test_snakefile.py",
    "test_many_cameras.py",
    "test_serve_command.py",
    "results/experiments/test_lists.py",
)
"""Files with half a minute of slow tests or more. ``make test`` keeps pytest-xdist from sorting files by how many tests
they have, which are few in some of these."""
PROPERTY = "processor_seconds"
BEGAN = pytest.StashKey[float]()


def processor_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def pytest_collection_modifyitems(items):
    ranks = {FOLDER / name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))  # keeps the order within a file, and of the others


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
