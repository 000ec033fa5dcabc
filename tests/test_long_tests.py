"""Tests that take long are named, those that are marked slow are not; the longest files begin."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import long_tests

TESTS = """
import pytest, time

def burn():
    until = time.process_time() + 0.3
    while time.process_time() < until:
        pass

@pytest.fixture
def prepared():
    burn()

def test_quick(): pass
def test_long(): burn()
def test_prepared(prepared): pass
@pytest.mark.slow
def test_marked(): burn()
"""


def test_the_longest_files_are_there():
    assert [name for name in long_tests.LONGEST if not (Path(long_tests.__file__).parent / name).is_file()] == []


def test_the_longest_files_begin():
    items = [SimpleNamespace(path=long_tests.FOLDER / name, name=name) for name in ("a.py", *long_tests.LONGEST[1::-1])]
    long_tests.pytest_collection_modifyitems(items)
    assert [item.name for item in items] == [*long_tests.LONGEST[:2], "a.py"]


@pytest.mark.slow
def test_long_tests_are_named_unless_they_are_marked_slow(tmp_path):
    plugin = Path(long_tests.__file__).read_text().replace("LIMIT_SECONDS = 1.5", "LIMIT_SECONDS = 0.2")
    (tmp_path / "conftest.py").write_text(plugin)
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "1"]
    ended = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTEST_ADDOPTS": ""}, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    _, named = ended.stdout.split("more than 0.2 s of processor time, but not marked slow")
    assert "test_long" in named and "test_prepared" in named
    assert "test_quick" not in named and "test_marked" not in named
