"""Annotation pickles: what people have is read, what could run code is refused by name."""

import collections
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from datamodules.annotations.safe_pickle import load_pickle
from datamodules.errors import UserError

DATA = Path(__file__).parents[3] / "shared/data"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="real annotations are not on this machine")

PER_FRAME = {"video_test_0000324": {"anno": np.eye(3, 22), "feature_length": np.int64(3)}}
"""As OadTR keeps THUMOS14."""
CONTAINERS = {
    "arrays": [np.arange(6, dtype=np.uint8).reshape(2, 3), np.asfortranarray(np.eye(2, dtype=np.float32))],
    "numbers": (np.float32(0.5), np.uint16(300), np.bool_(True), 1 + 2j, 3, None),
    "text": {"a\u00e9", "b"},
    "ordered": collections.OrderedDict(x=b"\x80\xff"),
    "defaults": collections.defaultdict(list, y=[bytearray(b"z")]),
    "names": np.asarray(["walk", b"run"], dtype=object),
}


def written(folder: Path, contents: bytes) -> Path:
    path = folder / "boxes.pkl"
    path.write_bytes(contents)
    return path


def assert_equal(read, expected) -> None:
    """Equal in value and in type, arrays in dtype too."""
    assert type(read) is type(expected)
    if isinstance(expected, dict):
        assert list(read) == list(expected)
        for key in expected:
            assert_equal(read[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(read) == len(expected)
        for one, other in zip(read, expected, strict=True):
            assert_equal(one, other)
    elif isinstance(expected, np.ndarray):
        assert read.dtype == expected.dtype
        np.testing.assert_array_equal(read, expected)
    else:
        assert read == expected


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("contents", [PER_FRAME, CONTAINERS], ids=["per_frame", "containers"])
def test_arrays_and_plain_containers_come_back_as_they_were(tmp_path, contents, protocol):
    assert_equal(load_pickle(written(tmp_path, pickle.dumps(contents, protocol))), contents)


@pytest.mark.parametrize(("old", "new"), [(b"numpy._core", b"numpy.core"), (b"numpy.core", b"numpy._core")])
def test_both_numpy_1_and_numpy_2_name_their_functions(tmp_path, old, new):
    contents = pickle.dumps(PER_FRAME, 2).replace(old, new)
    assert new in contents
    assert_equal(load_pickle(written(tmp_path, contents)), PER_FRAME)


def test_text_of_python_2_is_read_with_the_bytes_of_its_arrays(tmp_path):
    # What Python 2 writes for {"box": np.array([256.0], dtype="<f4")} as protocol 0, its bytes as an escaped string.
    contents = (
        b"(dp0\nS'box'\np1\ncnumpy.core.multiarray\n_reconstruct\np2\n(cnumpy\nndarray\np3\n(I0\ntS'b'\ntRp4\n"
        b"(I1\n(I1\ntcnumpy\ndtype\np5\n(S'f4'\nI0\nI1\ntRp6\n(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS'\\x00\\x00\\x80C'\n"
        b"tbs."
    )
    read = load_pickle(written(tmp_path, contents))
    assert_equal(read, {"box": np.asarray([256], np.float32)})


class Calling:
    """Pickles into a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL])
@pytest.mark.parametrize(
    ("thing", "named"),
    [
        (Calling(os.mkdir, "{folder}/made"), r"posix\.mkdir"),
        (Calling(eval, "1"), r"(__builtin__|builtins)\.eval"),
        (Calling(getattr, "", "join"), r"(__builtin__|builtins)\.getattr"),
        (np.load, r"numpy\.load"),
        (np.testing.assert_equal, r"numpy\.testing.*\.assert_equal"),
        (Path("boxes"), r"pathlib.*\.PosixPath"),
        (collections.Counter("a"), r"collections\.Counter"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_anything_else_is_refused_by_name_and_not_run(tmp_path, thing, named, protocol):
    if isinstance(thing, Calling) and thing.call[0] is os.mkdir:
        thing = Calling(os.mkdir, str(tmp_path / "made"))
    path = written(tmp_path, pickle.dumps({"boxes": [thing]}, protocol))
    with pytest.raises(UserError, match=rf"boxes\.pkl: refused: it asks for {named}, and only numpy arrays"):
        load_pickle(path)
    assert os.listdir(tmp_path) == ["boxes.pkl"]


@pytest.mark.parametrize(
    ("contents", "named"),
    [
        (b"cnumpy.core.multiarray\nfromfile\n.", r"numpy\.core\.multiarray\.fromfile"),
        (b"cnumpy.core.multiarray._reconstruct\n__self__\n.", r"numpy\.core\.multiarray\._reconstruct\.__self__"),
        (b"\x80\x04\x8c\x0bcollections\x8c\x17OrderedDict.__init__.im\x93.", r"collections\.OrderedDict\.__init__\.im"),
        (b"c_codecs\nencode\n(Va\nVidna\ntR.", "the encoding 'idna'"),
        (b"Poutside\n.", "the outside object 'outside'"),
    ],
)
def test_ways_around_the_list_are_refused(tmp_path, contents, named):
    with pytest.raises(UserError, match=f"refused: it asks for {named}"):
        load_pickle(written(tmp_path, contents))


@pytest.mark.parametrize(
    "contents",
    [b"", b"video,1,2,3", pickle.dumps(PER_FRAME)[:-20], b"cnumpy\ndtype\n(Vnonsense\ntR."],
    ids=["empty", "csv", "cut", "nonsense"],
)
def test_a_file_that_is_no_whole_pickle_is_named(tmp_path, contents):
    with pytest.raises(UserError, match=r"boxes\.pkl: is not a readable pickle \("):
        load_pickle(written(tmp_path, contents))
    with pytest.raises(UserError, match=r"none\.pkl: no such annotation file"):
        load_pickle(tmp_path / "none.pkl")


@needs_data
@pytest.mark.parametrize(
    "name",
    [
        "jhmdb/JHMDB-GT.pkl",
        "ucf101_24/pyannot.mini.pkl",
        "ucf101_24/UCF101v2-GT.mini.pkl",
        "mmaction2_fixtures/eval_detection/proposal.pkl",
        "mmaction2_fixtures/multisports_dataset/multisports_proposals_sample.pkl",
        "mmaction2_fixtures/ava_dataset/ava_proposals_sample.pkl",
    ],
)
def test_the_pickles_that_people_have_are_read_like_pickle_reads_them(name):
    with (DATA / name).open("rb") as file:
        expected = pickle.load(file, encoding="latin1")
    assert_equal(load_pickle(DATA / name), expected)
