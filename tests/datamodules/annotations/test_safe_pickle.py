"""Annotation pickles: what people have is read, what could run code is refused by name."""

import collections
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from datamodules.annotations.pickles.safe_pickle import load_pickle
from datamodules.errors import UserError
from tests.datamodules.annotations.hostile_pickles import lies

ROOT = Path(__file__).parents[3]
DATA = ROOT.parent / "shared/data"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="real annotations are not on this machine")

PER_FRAME = {"video_test_0000324": {"anno": np.eye(3, 22), "feature_length": np.int64(3)}}
"""Form in which OadTR keeps THUMOS14."""
CONTAINERS = {
    "arrays": [np.arange(6, dtype=np.uint8).reshape(2, 3), np.asfortranarray(np.eye(2, dtype=np.float32))],
    "numbers": (np.float32(0.5), np.uint16(300), np.bool_(True), 1 + 2j, 3, None),
    "text": {"a\u00e9", "b"},
    "ordered": collections.OrderedDict(x=b"\x80\xff"),
    "defaults": collections.defaultdict(list, y=[bytearray(b"z")]),
    "names": np.asarray(["walk", b"run"], dtype=object),
    "text arrays": [
        np.asarray(["walk", "run\u00e9"]),
        np.asarray([b"walk", b"run"]),
        np.str_(""),
        np.str_("a"),
        np.bytes_(b""),
    ],
    "empty": [
        np.empty((0, 4), np.float32),
        np.empty((3, 0), bool),
        np.asarray(5),
        b"",
        bytearray(),
        set(),
        frozenset(),
    ],
    "views": [np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1), np.arange(9)[::2], np.eye(3, dtype=bool)],
    "shared": [[(240, 320)] * 3] * 2,
    "keys": {("a", 1): 1, 2.5: 2, None: 3, np.int64(4): 4, b"b": 5},
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


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", [">i4", ">u2", ">f8", ">c8", "<i4", ">U4"])
def test_numbers_of_another_byte_order_are_read_like_pickle_reads_them(tmp_path, kind, protocol):
    values = np.asarray([[1, 2], [3, 400]]).astype(kind)
    for array in (values, values.T, values[0, 0]):
        contents = pickle.dumps({"first": array, "second": array}, protocol)
        read = load_pickle(written(tmp_path, contents))
        assert_equal(read, pickle.loads(contents))
        np.testing.assert_array_equal(read["second"], array)


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
        (b"cnumpy\ndtype\n(Vnonsense\ntR.", "the numpy type 'nonsense'"),
    ],
)
def test_ways_around_the_list_are_refused(tmp_path, contents, named):
    with pytest.raises(UserError, match=f"refused: it asks for {named}"):
        load_pickle(written(tmp_path, contents))


@pytest.mark.parametrize(
    "contents",
    [b"", b"video,1,2,3", pickle.dumps(PER_FRAME)[:-20]],
    ids=["empty", "csv", "cut"],
)
def test_a_file_that_is_no_whole_pickle_is_named(tmp_path, contents):
    with pytest.raises(UserError, match=r"boxes\.pkl: is not a readable pickle \("):
        load_pickle(written(tmp_path, contents))
    with pytest.raises(UserError, match=r"none\.pkl: no such annotation file"):
        load_pickle(tmp_path / "none.pkl")
    with pytest.raises(UserError, match="cannot be read: File name too long"):
        load_pickle(tmp_path / ("n" * 300 + ".pkl"))


def run_hostile(action: str, *arguments: object) -> str:
    """Return the output of the program of ``hostile_pickles``; a signal that ends it is an error here."""
    command = [sys.executable, "-m", "tests.datamodules.annotations.hostile_pickles", action, *map(str, arguments)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, f"ended with {ended.returncode}: {ended.stderr[-2000:]}"
    return ended.stdout


@pytest.mark.slow
def test_lies_about_arrays_and_bombs_are_refused_in_one_line_and_bounded_in_time_and_memory(tmp_path):
    files = lies()
    for number, contents in enumerate(files.values()):
        (tmp_path / f"{number:03d}").write_bytes(contents)
    found = [json.loads(line) for line in run_hostile("read", tmp_path).splitlines()]
    assert len(found) == len(files) > 150
    for name, (number, said, seconds, peak_mib) in zip(files, found, strict=True):
        assert said.startswith(f"{tmp_path}/{number}: ") and "\n" not in said, (name, said)
        assert len(said) < len(str(tmp_path)) + 400, (name, said)
        assert seconds < 10 and peak_mib < 1000, (name, seconds, peak_mib)


def of_jhmdb() -> bytes:
    """One video of the real file, in the bytes that Python 2 wrote: the others are cut out."""
    whole = (DATA / "jhmdb/JHMDB-GT.pkl").read_bytes()
    name = whole[whole.index(b"S'kick_ball/") :].split(b"\n")[0]
    start = whole[: whole.index(b"tbas") + 4] + b"ss"  # up to the end of its boxes
    rest = {b"nframes": b"I19", b"resolution": b"(I240\nI320\nt"}
    dicts = b"".join(b"S'" + key + b"'\n(d" + name + b"\n" + value + b"\nss" for key, value in rest.items())
    lists = b"".join(b"S'" + key + b"'\n(l(l" + name + b"\naas" for key in (b"train_videos", b"test_videos"))
    return start + dicts.replace(b"I320\nt\n", b"I320\nt") + lists + b"."


def annotation_files() -> dict[str, bytes]:
    """Files that people have, cut to a few videos so that many can be read; made here where they are absent."""
    if not DATA.exists():
        tube = np.asarray([(frame, 32, 24, 159, 119) for frame in range(1, 20)], np.float32)
        truth = {"labels": ["a", "b"], "gttubes": {"a/v": {0: [tube]}}, "nframes": {"a/v": 19}}
        truth |= {"resolution": {"a/v": (240, 320)}, "train_videos": [["a/v"]], "test_videos": [[]]}
        boxes = np.arange(40, dtype=np.uint8).reshape(10, 4)
        pyannot = {"a/v": {"numf": 19, "label": 0, "annotations": [{"label": 0, "sf": 3, "ef": 13, "boxes": boxes}]}}
        first = {"truth_2": pickle.dumps(truth, 0), "pyannot": pickle.dumps(pyannot, 2)}
    else:
        truth = load_pickle(DATA / "ucf101_24/UCF101v2-GT.mini.pkl")
        pyannot = load_pickle(DATA / "ucf101_24/pyannot.mini.pkl")
        name = min(pyannot, key=lambda name: len(pickle.dumps(pyannot[name])))
        truth |= {key: {name: truth[key][name]} for key in ("gttubes", "nframes", "resolution")}
        truth |= {"train_videos": [[name]], "test_videos": [[]], "labels": truth["labels"][:4]}
        pyannot = {name: pyannot[name]}
        first = {"jhmdb": of_jhmdb(), "pyannot": pickle.dumps(pyannot, 2)}
    frames = {"video_test_0000324": {"anno": np.eye(30, 22, dtype=np.float32)[::7], "feature_length": np.int64(5)}}
    return first | {
        "truth_5": pickle.dumps(truth, 5),
        "truth_4": pickle.dumps({**truth, "labels": np.asarray(truth["labels"]), "numbers": [np.float32(1), True]}, 4),
        "pyannot_0": pickle.dumps(pyannot, 0),
        "frames": pickle.dumps(frames, 2),
        "frames_5": pickle.dumps(frames, 5),
    }


@pytest.mark.parametrize(("seed", "count"), [(0, 1_000), pytest.param(1, 10_000, marks=pytest.mark.slow)])
def test_thousands_of_mutated_annotation_files_end_in_one_line_each(tmp_path, seed, count):
    (tmp_path / "files").mkdir()
    for name, contents in annotation_files().items():
        (tmp_path / "files" / name).write_bytes(contents)
        assert "gttubes" in repr(load_pickle(tmp_path / "files" / name)) or "truth" not in name
    found = json.loads(run_hostile("fuzz", tmp_path / "files", seed, count))
    print(found)
    ends = [found[end] for end in ("read", "refused", "unreadable", "no annotation")]
    assert sum(ends) == count
    assert min(ends) > count / 50  # each of them is tried
    assert found["slowest_seconds"] < 10 and found["peak_mib"] < 1000


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
