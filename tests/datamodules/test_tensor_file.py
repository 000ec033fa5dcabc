"""Files of tensors: read as they were written, or refused in one line, never half or with other values."""

from __future__ import annotations

import argparse
import io
import random
from pathlib import Path

import pytest
import torch

from datamodules.errors import UserError
from datamodules.tensor_file import read_tensor_file

TENSORS = {"a": torch.arange(10.0), "b": torch.ones(3, 3)}


def stored(*, zipped: bool = True) -> bytes:
    """Forms that ``torch.save`` writes: a zip archive, or that before PyTorch 1.6."""
    content = io.BytesIO()
    torch.save(TENSORS, content, _use_new_zipfile_serialization=zipped)
    return content.getvalue()


@pytest.mark.parametrize("zipped", [True, False])
def test_both_forms_are_read(zipped, tmp_path):
    (tmp_path / "weights.pt").write_bytes(stored(zipped=zipped))
    content = read_tensor_file(tmp_path / "weights.pt")
    assert content.keys() == TENSORS.keys() and all(torch.equal(content[key], TENSORS[key]) for key in TENSORS)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty; copy it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "is a Git-LFS pointer"),
        (b"\n<!DOCTYPE html><html><body>Too many users</body></html>", "is a web page"),
        (b"epoch,map\n1,0.5\n", r"is no file of PyTorch's \(it begins with b'epoch,map"),
        (stored()[:-40], "ends too early, after"),
        (stored(zipped=False)[:-40], "is damaged"),
        (
            stored().replace(TENSORS["a"].numpy().tobytes(), TENSORS["a"].flip(0).numpy().tobytes()),
            "is damaged: the checksum of",
        ),
        (b"\x80\x02garbage", "is damaged; copy it again"),
    ],
    ids=["empty", "git-lfs", "web page", "table", "cut", "cut, old form", "other values", "garbage"],
)
def test_what_is_no_whole_file_of_tensors_is_refused_in_a_line_with_its_name(content, problem, tmp_path):
    (tmp_path / "weights.pt").write_bytes(content)
    with pytest.raises(UserError, match=rf"weights\.pt: {problem}"):
        read_tensor_file(tmp_path / "weights.pt")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        (".", "is a folder"),
        ("absent.pt", "no weights at .*absent.pt"),
        ("x" * 300, "cannot be read: File name too long"),
    ],
)
def test_what_is_no_file_is_refused(name, problem, tmp_path):
    with pytest.raises(UserError, match=problem):
        read_tensor_file(tmp_path / name)


def test_more_than_tensors_is_refused_unless_it_is_allowed_plain_data(tmp_path):
    torch.save({"options": argparse.Namespace(lr=1)}, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=r"weights\.pt holds more than tensors and is not read: argparse\.Namespace;"):
        read_tensor_file(tmp_path / "weights.pt")
    assert read_tensor_file(tmp_path / "weights.pt", classes=[argparse.Namespace])["options"].lr == 1


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_with_a_changed_byte_is_read_as_it_was_or_refused(zipped, tmp_path: Path):
    whole, choose, file, refused = stored(zipped=zipped), random.Random(0), tmp_path / "weights.pt", 0
    for _ in range(500):
        changed = bytearray(whole)
        changed[choose.randrange(len(whole))] ^= choose.randrange(1, 256)
        file.write_bytes(changed)
        try:
            content = read_tensor_file(file)
        except UserError as error:
            assert str(file) in str(error) and "\n" not in str(error)
            refused += 1
        else:
            if zipped:  # the old form has no checksums
                assert all(torch.equal(content[key], TENSORS[key]) for key in TENSORS)
    assert refused > 100
