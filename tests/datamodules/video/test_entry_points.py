"""Packets that are pictures of their own: bits written by hand after the standards."""

import pytest

from datamodules.video.entry_points import Entry, entry_test

IDR = bytes([0x65, 0x88])
PARAMETERS = bytes([0x67, 0x64, 0x00, 0x0A])


def slice_of(kind: int, first_macroblock: int = 0) -> bytes:
    """An H.264 slice of a picture that is no IDR picture: its type, then the two numbers at the start."""
    bits = exp_golomb(first_macroblock) + exp_golomb(kind)
    bits += "1" * (-len(bits) % 8) + "1" * 64
    return bytes([0x41]) + bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))


def exp_golomb(number: int) -> str:
    return "0" * ((number + 1).bit_length() - 1) + f"{number + 1:b}"


def recovery_point(frames: int, before: bytes = b"") -> bytes:
    """Supplemental information: other messages, then how many frames the picture takes to be whole."""
    bits = exp_golomb(frames) + "10000"
    bits += "0" * (-len(bits) % 8)
    payload = bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))
    return bytes([0x06]) + before + bytes([6, len(payload)]) + payload + b"\x80"


def start_codes(*units: bytes) -> bytes:
    return b"".join(b"\0\0\0\1" + unit for unit in units)


def lengths(count: int, *units: bytes) -> bytes:
    return b"".join(len(unit).to_bytes(count, "big") + unit for unit in units)


def header(codec: str, length_bytes: int) -> bytes:
    """The parts of the stream's header (avcC, hvcC) that say how long lengths are."""
    content = bytearray(b"\x01" * 30)
    content[{"h264": 4, "hevc": 21}[codec]] = 0xFC | length_bytes - 1
    return bytes(content)


MESSAGE_BEFORE = bytes([5, 255, 3]) + b"x" * 258
PACKETS = [
    ((PARAMETERS, IDR), Entry.CLOSED),
    ((recovery_point(0), IDR), Entry.CLOSED),
    ((recovery_point(0), slice_of(7)), Entry.OPEN),
    ((recovery_point(0), slice_of(2), slice_of(2, first_macroblock=99)), Entry.OPEN),
    ((recovery_point(0, MESSAGE_BEFORE), slice_of(7)), Entry.OPEN),
    ((recovery_point(0), slice_of(7), slice_of(5)), Entry.OPEN),  # the second field refers to the first
    ((recovery_point(11), slice_of(7)), Entry.NONE),
    ((recovery_point(11, MESSAGE_BEFORE), slice_of(5)), Entry.NONE),
    ((recovery_point(0), slice_of(5)), Entry.NONE),  # says that it is whole, and refers to others
    ((recovery_point(0), slice_of(2), slice_of(0, first_macroblock=99)), Entry.NONE),
    ((slice_of(7),), Entry.NONE),  # nothing says that later frames do without earlier ones
    ((slice_of(5),), Entry.NONE),
    ((PARAMETERS,), Entry.NONE),
    ((), Entry.NONE),
]


@pytest.mark.parametrize(("units", "entry"), PACKETS)
def test_h264_is_entered_at_idr_pictures_and_at_intra_pictures_that_are_whole_at_once(units, entry):
    assert entry_test("h264", None)(start_codes(*units)) is entry
    assert entry_test("h264", b"\0\0\0\1" + PARAMETERS)(start_codes(*units)) is entry
    for count in (2, 4):
        assert entry_test("h264", header("h264", count))(lengths(count, *units)) is entry


@pytest.mark.parametrize(
    ("kind", "entry"),
    [(0, "NONE"), (1, "NONE"), (8, "NONE"), (16, "OPEN"), (18, "OPEN"), (19, "CLOSED"), (20, "CLOSED"), (21, "OPEN")],
)
def test_hevc_is_entered_at_the_pictures_of_random_access(kind, entry):
    units = bytes([32 << 1, 1, 7]), bytes([39 << 1, 1, 7]), bytes([kind << 1, 1, 0x80])
    assert entry_test("hevc", header("hevc", 4))(lengths(4, *units)) is Entry[entry]
    assert entry_test("hevc", None)(start_codes(*units)) is Entry[entry]


@pytest.mark.parametrize(("kind", "entry"), [(0, "NONE"), (7, "CLOSED"), (8, "CLOSED"), (9, "OPEN"), (10, "NONE")])
def test_vvc_is_not_entered_at_pictures_of_gradual_refresh(kind, entry):
    assert (
        entry_test("vvc", None)(start_codes(bytes([0, 15 << 3 | 1]), bytes([0, kind << 3 | 1, 0x80]))) is Entry[entry]
    )


@pytest.mark.parametrize(
    ("codec", "intra", "other"),
    [
        ("mpeg4", b"\0\0\1\xb6\x10", b"\0\0\1\xb6\x50"),
        ("mpeg2video", b"\0\0\1\0\0\x0f", b"\0\0\1\0\0\x17"),
        ("vp8", b"\x10\0\0", b"\x11\0\0"),
    ],
)
def test_older_codecs_say_at_one_place_whether_a_picture_is_intra(codec, intra, other):
    test = entry_test(codec, None)
    assert test(intra) is Entry.CLOSED and test(b"\0\0\1\xb3\x01\x02" + intra) is Entry.CLOSED
    assert test(other) is Entry.NONE


def test_flags_of_codecs_that_are_not_looked_into_are_believed():
    assert entry_test("prores", None)(b"anything") is Entry.CLOSED


@pytest.mark.parametrize("codec", ["h264", "hevc", "vvc", "mpeg4", "mpeg2video", "vp8"])
def test_damaged_packets_are_no_error(codec):
    packets = [
        start_codes(recovery_point(0), slice_of(7)),
        lengths(4, IDR, slice_of(7)),
        b"\0\0\1",
        b"\xff" * 40,
        b"\0",
    ]
    for extradata in (None, b"", b"\x01", header("h264", 4), header("hevc", 1)):
        test = entry_test(codec, extradata)
        for packet in packets:
            for end in range(len(packet) + 1):
                assert test(packet[:end]) in Entry
