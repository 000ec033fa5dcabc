"""Files are whole or not there."""

import os
import signal
import subprocess
import sys

import pytest

from datamodules.errors import UserError
from datamodules.files import sweep, whole_file, whole_path, write_whole


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_with_the_folders_on_its_way(tmp_path):
    write_whole(tmp_path / "a" / "b" / "text.csv", "ä\n")
    assert (tmp_path / "a" / "b" / "text.csv").read_bytes() == "ä\n".encode()
    assert names(tmp_path / "a" / "b") == ["text.csv"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "table.md"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), whole_file(target) as file:
        file.write("half")
        1 / 0  # noqa: B018
    assert target.read_text() == "old" and names(tmp_path) == ["table.md"]


def test_readers_see_the_old_file_until_the_block_ends(tmp_path):
    target = tmp_path / "table.md"
    target.write_text("old")
    with whole_path(target) as unfinished:
        unfinished.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"


def test_a_folder_appears_whole(tmp_path):
    with whole_path(tmp_path / "entry") as unfinished:
        unfinished.mkdir()
        (unfinished / "frames.npy").write_bytes(b"1")
        assert not (tmp_path / "entry").exists()
    assert names(tmp_path) == ["entry"] and names(tmp_path / "entry") == ["frames.npy"]


def test_the_longest_name_that_the_system_takes_can_be_written(tmp_path):
    name = "n" * 251 + ".csv"
    write_whole(tmp_path / name, "x")
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("place", ["n" * 256, "folder", "file/below"])
def test_a_name_that_cannot_be_written_is_named_in_the_error(tmp_path, place):
    (tmp_path / "folder" / "full").mkdir(parents=True)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=place.split("/")[-1]):
        write_whole(tmp_path / place, "x")
    assert names(tmp_path) == ["file", "folder"]


def test_errors_about_other_files_are_left_as_they_are(tmp_path):
    with pytest.raises(FileNotFoundError, match="source"), whole_path(tmp_path / "target"):
        (tmp_path / "source").read_text()


def test_a_killed_program_leaves_no_file_of_that_name_and_its_leftover_is_swept(tmp_path):
    program = (
        "import sys, time; from datamodules.files import whole_file\n"
        "with whole_file(sys.argv[1]) as file:\n    file.write('half'); file.flush(); print('there', flush=True)\n"
        "    time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "a.csv")], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        sweep(tmp_path)
        assert len(names(tmp_path)) == 1, "of a program that runs, nothing is swept"
        os.kill(process.pid, signal.SIGKILL)
    assert len(names(tmp_path)) == 1 and not (tmp_path / "a.csv").exists()
    sweep(tmp_path)
    assert names(tmp_path) == []


def test_a_full_disk_leaves_the_old_file(small_disk):
    write_whole(small_disk / "last.ckpt", b"1" * 100_000)
    with pytest.raises(UserError, match=r"last.ckpt: cannot be written: No space left"):
        write_whole(small_disk / "last.ckpt", b"2" * 200_000)
    assert (small_disk / "last.ckpt").read_bytes() == b"1" * 100_000
    assert names(small_disk) == ["last.ckpt"]
