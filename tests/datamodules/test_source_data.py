"""Behaviour that the DataModules of all sources share."""

from pathlib import Path

import pytest

from datamodules.errors import UserError
from datamodules.source_data import _named


def test_files_to_predict_on_have_short_names_that_tell_them_apart():
    assert _named(["a/one.mp4", Path("b/two.avi")]) == [("one", Path("a/one.mp4")), ("two", Path("b/two.avi"))]
    assert [name for name, _ in _named(["a/1.mp4", "b/1.mp4", "b/2.mp4"])] == ["a/1.mp4", "b/1.mp4", "b/2.mp4"]
    assert [name for name, _ in _named(["1.mp4", "1.avi"])] == ["1.mp4", "1.avi"]


@pytest.mark.parametrize("again", ["a/1.mp4", "a/./1.mp4", "a//1.mp4"])
def test_a_file_to_predict_on_that_is_named_twice_is_refused(again):
    with pytest.raises(UserError, match=r"predict_videos: the file 'a/1\.mp4' is there 2 times \(number 1, 3\)"):
        _named(["a/1.mp4", "b/1.mp4", again])
