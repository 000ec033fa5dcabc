"""Text of users: what is read whatever wrote it, and what is refused with the name of the file and the way out."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from datamodules.annotations.activitynet import ActivityNet, read_segment_json
from datamodules.annotations.ava import read_label_map, read_moments
from datamodules.annotations.ava_csv import read_ava_csv
from datamodules.annotations.own_videos import OwnVideos, named_videos
from datamodules.annotations.thumos14 import read_class_texts, read_metadata
from datamodules.errors import UserError
from datamodules.text_files import check_names, read_class_list, read_json, read_lines
from lightning_modules.metrics.frame_results import read_frame_detections
from lightning_modules.metrics.segment_results import read_results
from lightning_modules.metrics.tube_results import read_tubes
from tests.flat_data import predict_data

SEGMENTS = '{"database": {"café": {"subset": "training", "annotations": [{"label": "jump", "segment": [1, 2]}]}}}'


def class_texts(path: Path) -> object:
    path.rename(path.with_name("Diving_test.txt"))
    return read_class_texts(path.parent)


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "boxes": ("café,0.5,0.1,0.1,0.5,0.5,1,0\n", lambda path: repr(read_ava_csv(path, ["walk"]))),
    "classes": ("marché\nwalk\n", read_class_list),
    "videos": ("folder/café.mp4\n", lambda path: named_videos(path, ["café"])),
    "moments": ("café,902\n", read_moments),
    "labels": ('item { name: "café" id: 3 }', read_label_map),
    "segments": (SEGMENTS, read_segment_json),
    "blocked": ('["café"]', lambda path: ActivityNet("x", blocked_videos=path)._blocked()),
    "seconds": ("filename,video-duration,fps\ncafé.mp4,10,25\n", read_metadata),
    "texts": ("café 1.0 2.0\n", class_texts),
    "frames": ("café,902,0,0,0.5,0.5,1,0.9\n", lambda path: repr(read_frame_detections(path))),
    "results": (
        '{"results": {"café": [{"label": "jump", "score": 1, "segment": [0, 1]}]}}',
        lambda path: read_results(path, ["jump"]),
    ),
    "tubes": (
        '{"tubes": {"café": [{"label": "jump", "score": 1, "start_frame": 0, "boxes": [[1, 2, 3, 4]]}]}}',
        lambda path: repr(read_tubes(path, ["jump"])),
    ),
}
ENDINGS = {"segments": ".json", "blocked": ".json", "results": ".json", "tubes": ".json"}


def written(folder: Path, reader: str, contents: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{reader}{ENDINGS.get(reader, '.txt')}"
    path.write_bytes(contents)
    return path


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("reader", READERS)
def test_text_with_a_byte_order_mark_is_read_like_plain_utf_8(tmp_path, reader, encoding):
    text, read = READERS[reader]
    mark = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}.get(encoding, b"")
    plain = read(written(tmp_path / "plain", reader, text.encode()))
    assert "caf" in str(plain) or "march" in str(plain)
    other = read(written(tmp_path / "other", reader, mark + text.encode(encoding)))
    assert str(other) == str(plain)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("cp1252", r"line \d is not UTF-8 \(byte 0xe9\)"),
        ("utf-16-le", "is no text in UTF-8, for it holds zero bytes"),
    ],
)
def test_text_of_another_encoding_is_refused_in_one_line_with_the_way_out(tmp_path, reader, encoding, said):
    text, read = READERS[reader]
    path = written(tmp_path, reader, text.encode(encoding))
    with pytest.raises(UserError, match=rf"(Diving_test|{reader})\..*: {said}; save it as UTF-8") as refused:
        read(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("reader", READERS)
def test_utf_16_that_is_cut_off_is_refused(tmp_path, reader):
    text, read = READERS[reader]
    with pytest.raises(UserError, match=r"is damaged UTF-16 .*; save it as UTF-8"):
        read(written(tmp_path, reader, text.encode("utf-16")[:-1]))


@pytest.mark.parametrize("reader", [name for name in READERS if name != "texts"])
def test_a_missing_file_and_a_folder_are_named(tmp_path, reader):
    _, read = READERS[reader]
    path = tmp_path / f"{reader}{ENDINGS.get(reader, '.txt')}"
    with pytest.raises(UserError, match=rf"{path}: no such "):
        read(path)
    path.mkdir()
    with pytest.raises(UserError, match=rf"{path}: is no "):
        read(path)


@pytest.mark.parametrize("reader", [name for name in READERS if name != "texts"])
def test_a_name_that_no_file_can_have_is_refused_in_one_line(tmp_path, reader):
    _, read = READERS[reader]
    path = tmp_path / f"{'n' * 300}{ENDINGS.get(reader, '.txt')}"
    with pytest.raises(UserError, match="cannot be read: File name too long"):
        read(path)
    with pytest.raises(UserError, match=r"first\\nsecond.*: no such"):
        read(tmp_path / f"first\nsecond{ENDINGS.get(reader, '.txt')}")


def test_the_line_that_is_not_utf_8_is_the_one_that_is_named(tmp_path):
    path = tmp_path / "boxes.csv"
    lines = [f"v{number},0.5,0.1,0.1,0.5,0.5,1,0".encode() for number in range(20_000)]
    lines[15_000] = b"caf\xe9,0.5,0.1,0.1,0.5,0.5,1,0"
    path.write_bytes(b"\n".join(lines))
    for read in (lambda: read_ava_csv(path, ["walk"]), lambda: read_frame_detections(path)):
        with pytest.raises(UserError, match="line 15001 is not UTF-8"):
            read()


CSVS = {name: READERS[name] for name in ("boxes", "moments", "seconds", "frames")}


@pytest.mark.parametrize(("separator", "called"), [(";", "semicolons"), ("\t", "tabs"), ("|", "bars")])
@pytest.mark.parametrize("decimal", [".", ","])
@pytest.mark.parametrize("reader", CSVS)
def test_columns_that_are_not_separated_by_commas_are_refused_by_the_name_of_what_separates_them(
    tmp_path, reader, separator, called, decimal
):
    text, read = CSVS[reader]
    text = text.replace(",", separator).replace("902", "902.5").replace(".", decimal).replace(",mp4", ".mp4")
    with pytest.raises(
        UserError, match=rf"{reader}\.txt: line 1: columns are separated by {called}; save it with comma"
    ):
        read(written(tmp_path, reader, text.encode()))


@pytest.mark.parametrize("reader", ["boxes", "moments", "frames"])
def test_names_may_hold_other_separators(tmp_path, reader):
    text, read = CSVS[reader]
    path = written(tmp_path, reader, text.replace("café", "a;b|c\td; e").encode())
    assert "a;b|c" in str(read(path))


@pytest.mark.parametrize("reader", ["boxes", "moments", "frames"])
def test_a_quotation_mark_that_is_never_closed_does_not_swallow_rows(tmp_path, reader):
    text, read = CSVS[reader]
    path = written(tmp_path, reader, (text + '"' + text * 3).encode())
    with pytest.raises(UserError, match=r"line [234]: a cell goes over several lines; close every quotation mark"):
        read(path)


LINE_BREAKS = [character for character in map(chr, range(sys.maxunicode)) if len(f"a{character}b".splitlines()) == 2]


def test_only_a_line_feed_ends_a_line(tmp_path):
    assert len(LINE_BREAKS) == 10
    others = "".join(f"a{character}b" for character in LINE_BREAKS if character not in "\r\n")
    (tmp_path / "lines.txt").write_bytes(f"one\r\n{others}\ntwo\n\nthree".encode())
    assert read_lines(tmp_path / "lines.txt") == ["one", others, "two", "", "three"]
    assert read_lines(written(tmp_path, "empty", b"")) == []


CLASS_READERS = {
    "own videos": lambda path: OwnVideos("videos", path).class_names(),
    "segments": lambda path: ActivityNet("annotations.json", classes=path).class_names(),
    "predict": lambda path: predict_data("a.mp4", str(path)).class_names,
}


@pytest.mark.parametrize("reader", CLASS_READERS)
def test_class_lists_of_every_reader_give_line_n_the_id_n(tmp_path, reader):
    path = tmp_path / "classes.txt"
    path.write_bytes("\ufeffwalk  \r\n sit down\r\nd\u00e9\u00e7u\u00a0- x\n\n \n".encode())
    assert CLASS_READERS[reader](path) == ("walk", "sit down", "d\u00e9\u00e7u\u00a0- x")


@pytest.mark.parametrize("reader", CLASS_READERS)
@pytest.mark.parametrize("character", [c for c in LINE_BREAKS if c != "\n"], ids=lambda c: f"{ord(c):x}")
def test_a_class_name_with_a_line_break_of_another_kind_is_refused_by_name(tmp_path, reader, character):
    path = tmp_path / "classes.txt"
    path.write_bytes(f"sit\nwalk{character}run\nwave\n".encode())
    with pytest.raises(UserError, match=r"classes\.txt: line 2 holds the line break .* within the name 'walk.*run'"):
        CLASS_READERS[reader](path)


@pytest.mark.parametrize("reader", CLASS_READERS)
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("walk\nrun\nwalk\n", r"the class 'walk' is there 2 times \(number 1, 3\); rename all but one"),
        ("walk\n walk \n", "the class 'walk' is there 2 times"),
        ("walk\n\nrun\n", "line 2 is empty; line n names action id n"),
        ("\nwalk\n", "line 1 is empty"),
        (" \n", "is empty; write one class name per line"),
    ],
)
def test_class_lists_that_would_lose_or_shift_a_class_are_refused(tmp_path, reader, text, said):
    path = tmp_path / "classes.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"classes\.txt: {said}"):
        CLASS_READERS[reader](path)


def test_names_in_a_setting_are_looked_at_like_those_of_a_file():
    assert predict_data("a.mp4", ["walk", "run"]).class_names == ("walk", "run")
    with pytest.raises(UserError, match="the class 'run' is there 2 times"):
        predict_data("a.mp4", ["walk", "run", " run"])


@pytest.mark.parametrize("reader", ["segments", "results", "tubes"])
def test_a_video_that_json_has_twice_is_refused_and_not_half_read(tmp_path, reader):
    text, read = READERS[reader]
    entry = text[text.index('"café"') : text.rindex("}}")]
    whole = text.replace(entry, f"{entry}, {entry}")
    assert json.loads(whole)  # json itself keeps the last
    with pytest.raises(UserError, match=rf"{reader}\.json: the name 'café' is there 2 times"):
        read(written(tmp_path, reader, whole.encode()))


def test_a_video_that_a_table_of_durations_has_twice_is_refused(tmp_path):
    path = tmp_path / "seconds.csv"
    path.write_text("filename,video-duration,fps\na.mp4,10,25\nb.mp4,10,25\na.mp4,20,25\n")
    with pytest.raises(UserError, match=r"seconds\.csv: the video 'a' is there 2 times \(number 1, 3\)"):
        read_metadata(path)


def test_many_equal_names_are_counted():
    check_names([], "file", "class")
    with pytest.raises(UserError, match=r"the class 'a' is there 9 times \(number 1, 2, 3, 4, 5, \.\.\.\)"):
        check_names(["a"] * 9, "file", "class")


@pytest.mark.parametrize("text", ["{", "[1,]", "", "[" * 100_000, '{"a": ' * 100_000, "1" * 10_000])
def test_what_is_no_json_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "found.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"found\.json: is not json: ") as refused:
        read_json(path)
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    "change",
    [
        {"duration": "x"},
        {"duration": -1},
        {"duration": "nan"},
        {"duration": "0", "frame": 5, "fps": "x"},
        {"fps": 10**400},
        {"fps": -25},
        {"annotations": 5},
        {"annotations": [{"label": "jump"}]},
        {"annotations": [{"label": "jump", "segment": [1]}]},
        {"annotations": [{"label": "jump", "segment": [1, 10**400]}]},
    ],
    ids=str,
)
def test_an_entry_of_segments_that_cannot_be_is_refused_by_the_name_of_its_video(tmp_path, change):
    path = tmp_path / "segments.json"
    entry = {"subset": "training", "duration": 10, "annotations": [{"label": "jump", "segment": [1, 2]}]}
    path.write_text(json.dumps({"database": {"a": entry}}))
    assert read_segment_json(path)["a"].duration == 10
    path.write_text(json.dumps({"database": {"a": entry | change}}))
    with pytest.raises(UserError, match=r"segments\.json: the entry a is not as expected"):
        read_segment_json(path)
