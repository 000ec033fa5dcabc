"""An error that a user can cause is one line; all others keep their traceback."""

from __future__ import annotations

import pickle
import sys

import pytest
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from datamodules.errors import UsageError, UserError, shown_in_one_line


class Refusing(Dataset):
    """A data set whose only sample is the user's fault."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> None:
        raise UserError("is cut after 3 of 8 frames", where="cam\n1.mp4", remedy="copy it again")


LINE = r"cam\n1.mp4: is cut after 3 of 8 frames; copy it again"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("is wrong"), "is wrong"),
        (UserError("is 4", where="num_classes", remedy="set it to 10"), "num_classes: is 4; set it to 10"),
        (UserError("first\n  second\n", where="a\x1b[2Jb\n.csv"), r"a\x1b[2Jb\n.csv: first second"),
    ],
)
def test_an_error_is_one_line_that_a_terminal_shows_as_it_is(error, line):
    assert str(error) == line and str(pickle.loads(pickle.dumps(error))) == line


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_in_a_worker_is_the_line_that_it_is_elsewhere(num_workers):
    with pytest.raises(UserError) as error:
        next(iter(DataLoader(Refusing(), num_workers=num_workers)))
    assert str(error.value) == LINE


@pytest.mark.parametrize(("kind", "status"), [(UserError, 1), (UsageError, 2)])
def test_a_program_ends_with_the_line_and_a_status(kind, status, capsys, monkeypatch):
    monkeypatch.delenv("ONLOOKER_DEBUG", raising=False)
    with pytest.raises(SystemExit) as end, shown_in_one_line():
        raise kind("is wrong", where="a.csv")
    assert end.value.code == status
    assert capsys.readouterr().err == "error: a.csv: is wrong\n"


def test_the_line_is_the_last_and_its_own_where_a_progress_bar_is_open(capsys, monkeypatch):
    monkeypatch.delenv("ONLOOKER_DEBUG", raising=False)
    bar = tqdm(total=2, file=sys.stderr)
    bar.update()
    with pytest.raises(SystemExit), shown_in_one_line():
        raise UserError("is wrong")
    bar.refresh()
    assert capsys.readouterr().err.splitlines()[-1] == "error: is wrong"


def test_for_debugging_the_error_keeps_its_traceback(monkeypatch):
    monkeypatch.setenv("ONLOOKER_DEBUG", "1")
    with pytest.raises(UserError), shown_in_one_line():
        raise UserError("is wrong")


@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError, KeyError])
def test_any_other_error_is_a_bug_and_passes_through(kind):
    with pytest.raises(kind), shown_in_one_line():
        raise kind("bug")
