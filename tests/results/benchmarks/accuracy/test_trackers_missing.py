"""The benchmark of trackers where its packages are missing."""

from __future__ import annotations

import pytest

from datamodules.errors import UserError
from results.benchmarks.accuracy import trackers


def test_missing_packages_are_named_with_what_brings_them(monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None if name == "trackeval" else object())
    with pytest.raises(UserError, match=r"trackeval not installed; python -m .*trackers --help has the commands"):
        trackers.require_packages()
