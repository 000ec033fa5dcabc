"""The commit that benchmarks write on their pages."""

import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from results.benchmarks import motion_speed, page
from results.benchmarks.accuracy import kept_tokens, streaming_accuracy, trackers, tube_settings
from results.benchmarks.gpu import __main__ as gpu

WRITERS = (page, motion_speed, gpu, kept_tokens, streaming_accuracy, trackers, tube_settings)


@pytest.mark.parametrize("writer", WRITERS, ids=lambda module: module.__name__)
def test_a_changed_benchmark_is_no_commit_and_a_page_that_it_wrote_is_one(writer: ModuleType, tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        names = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
        subprocess.run(["git", *names, *arguments], check=True, cwd=tmp_path, capture_output=True)

    program, written = tmp_path / "results/benchmarks/page.py", tmp_path / "results/pages/page.md"
    for file in (program, written):
        file.parent.mkdir(parents=True)
        file.write_text("old")
    git("init", "-q")
    git("add", "-A")
    git("commit", "-q", "-m", "mine")
    written.write_text("new")
    assert not writer.commit(program.parent).endswith("-dirty")
    program.write_text("new")
    assert writer.commit(program.parent).endswith("-dirty")
