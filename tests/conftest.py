"""Fixtures that tests of several rooms share."""

import os
import subprocess
from pathlib import Path

import pytest

from datamodules.puppets import Puppets


@pytest.fixture(scope="session")
def tiny_puppets(tmp_path_factory) -> Path:
    """The root of the tiny Puppets videos, made once for all processes of a run of tests; nothing is written to it."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of the whole run
    root = folder / "tiny_puppets"
    Puppets(root=root, size="tiny").prepare()  # one process makes them, the others wait for it
    return root


@pytest.fixture(scope="session")
def puppets_film(tiny_puppets) -> Path:
    """One of the videos, 48 frames at 16 a second."""
    return min(tiny_puppets.rglob("val_*.mp4"))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB, where this machine lets us mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs root, to mount a small file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)
