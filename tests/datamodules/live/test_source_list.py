"""Lists of sources: what may be in them, and what each source is called."""

from __future__ import annotations

import re

import pytest

from datamodules.errors import UserError
from datamodules.live.source_list import NamedSource, listed_sources, own_name

PASSWORD = "rtsp://admin:secret@10.0.0.5/ch{}"


def test_a_single_source_is_no_list(tmp_path):
    (tmp_path / "folder.txt").mkdir()
    for source in ("0", "film.mp4", "rtsp://host/list.txt", str(tmp_path / "folder.txt"), str(tmp_path)):
        assert listed_sources(source) is None


def test_sources_are_named_after_host_and_path_or_file_and_never_twice(tmp_path):
    (tmp_path / "trip").mkdir()
    given = [
        "rtsp://10.0.0.5/ch1",
        "http://10.0.0.5:81/ch1",
        "films/Door.mp4",
        "other/door.avi",
        0,
        str(tmp_path / "trip"),
    ]
    names = [source.name for source in listed_sources(given)]
    assert names == ["10.0.0.5_ch1", "10.0.0.5_ch1_2", "Door", "door_2", "camera_0", "trip"]
    assert [source.text for source in listed_sources(given)] == [str(text) for text in given]


def test_a_name_never_meets_that_of_the_file_beside_the_results():
    assert [source.name for source in listed_sources(["health.mp4", "b/health.mp4"])] == ["health_2", "health_3"]


def test_files_list_sources_by_lines_in_yaml_and_with_names(tmp_path):
    lines = tmp_path / "cameras.txt"
    lines.write_text("# the front\nrtsp://host/a#1\n\n  0  \r\nfilm.mp4")
    expected = (NamedSource("host_a", "rtsp://host/a#1"), NamedSource("camera_0", "0"), NamedSource("film", "film.mp4"))
    assert listed_sources(str(lines)) == expected
    plain = tmp_path / "cameras.yaml"
    plain.write_text("- rtsp://host/a#1\n- 0\n- film.mp4\n")
    assert listed_sources(str(plain)) == expected
    named = tmp_path / "cameras.YML"
    named.write_text("front door: rtsp://host/a\n7: 1\n")
    assert listed_sources(str(named)) == (NamedSource("front door", "rtsp://host/a"), NamedSource("7", "1"))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", "\n# nothing\n", "lists no sources"),
        ("a.yaml", "", "lists no sources"),
        ("a.yaml", "{}", "lists no sources"),
        ("a.yaml", "just text", "lists no sources"),
        ("a.yaml", "- [1, 2]", "source 1 is neither a text nor a number"),
        ("a.yaml", "- film.mp4\n- true", "source 2 is neither a text nor a number"),
        ("a.yaml", "door:\n", "the source of 'door' is neither a text nor a number"),
        ("a.yaml", "Door: 0\ndoor: 1", "two sources are called 'door'"),
        ("a.yaml", "health: 0", "a source cannot be called 'health'"),
        ("a.yaml", "' ': 0", "a source cannot be called ''"),
        ("a.yaml", f"- {PASSWORD}\n- {{", r"is no YAML \(line 2\)"),
    ],
)
def test_a_list_with_a_mistake_is_refused_by_its_name_and_without_its_passwords(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=rf"{name}: {words}.*") as refused:
        listed_sources(str(tmp_path / name))
    assert "secret" not in str(refused.value)


def test_a_list_that_is_not_there_or_empty_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.txt: no such list of sources"):
        listed_sources(str(tmp_path / "nowhere.txt"))
    with pytest.raises(UserError, match=r"data\.source: lists no sources"):
        listed_sources([])


def test_names_hold_no_password():
    assert [source.name for source in listed_sources([PASSWORD.format(1), PASSWORD.format(2)])] == [
        "10.0.0.5_ch1",
        "10.0.0.5_ch2",
    ]


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("rtsp://10.0.0.5:554/user=admin_password=secret_channel=1.sdp?real_stream", r"10\.0\.0\.5_[0-9a-f]{8}"),
        ("rtsp://10.0.0.5/ch1/admin&secret/main/", r"10\.0\.0\.5_ch1_[0-9a-f]{8}_main"),
        ("rtsp://10.0.0.5/password%3Dsecret", r"10\.0\.0\.5_[0-9a-f]{8}"),
        ("rtmp://live.example/app/secret", r"live\.example_app_[0-9a-f]{8}"),
        ("rtmps://live.example/app/secret/", r"live\.example_app_[0-9a-f]{8}"),
        ("rtsp://admin:sec/ret@10.0.0.5/ch1", r"admin_[0-9a-f]{8}_ch1"),
    ],
)
def test_passwords_and_keys_in_the_path_of_an_address_are_in_no_name(address, name):
    assert re.fullmatch(name, own_name(address))
    assert own_name(address) == own_name(address) != own_name(address.replace("secret", "other").replace("ret", "x"))


def test_what_cannot_be_an_address_is_refused_without_its_password():
    with pytest.raises(UserError, match=r"rtsp://\.\.\.: is no address; write it as") as error:
        own_name("rtsp://admin:secret@[fe80::1/stream")
    assert "secret" not in str(error.value)
