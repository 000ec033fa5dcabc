"""Entry points: the frames at which the decoding of a video may begin.

Containers flag some packets as keyframes, and readers jump to these. Not every flagged packet is a picture of its own.
With periodic intra refresh (security cameras, low-latency encoders) it is a *recovery point*: the picture becomes whole
only some frames later. In files written by careless programs every packet may be flagged. A decoder that begins there
gives frames that look plausible and are wrong, so the packets themselves are asked.

Sources: ITU-T H.264 sections 7.3.1, 7.3.3 and D.1.8; H.265 section 7.4.2.2; H.266 section 7.4.2.2; ISO 13818-2 section
6.3.9; ISO 14496-2 section 6.3.5; RFC 6386 section 9.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum

H264_SLICES, H264_IDR, H264_SEI = (1, 2), 5, 6
H264_INTRA_SLICES = frozenset({2, 4, 7, 9})
"""I and SI; 7 and 9 say that all slices of the picture are."""
RECOVERY_POINT = 6
"""Type of the SEI message that says after how many frames the picture is whole."""
HEVC_IDR, HEVC_ENTRIES, HEVC_SLICES = range(19, 21), range(16, 22), range(32)
VVC_IDR, VVC_ENTRIES, VVC_SLICES = range(7, 9), range(7, 10), range(12)
"""Number 10 of VVC is the picture of gradual refresh, which is no entry."""
HEADER_BYTES = 16
"""Bytes to read of a slice: more than the two numbers at its start take."""


class Entry(Enum):
    """Kind of a packet that a container flags as a keyframe."""

    CLOSED = "closed"
    """Decoding may begin here, and nothing that follows refers to what came before."""
    OPEN = "open"
    """Decoding may begin here, but frames that follow and are shown earlier may refer to what came before."""
    NONE = "none"
    """Frames from here on refer to earlier ones."""


def entry_test(codec: str, extradata: bytes | None) -> Callable[[bytes], Entry]:
    """Return the function that tells the kind of a flagged packet.

    Args:
        codec: FFmpeg's name; of a codec not listed here, flags are believed.
        extradata: header of the stream, which says how packets are divided.
    """
    if codec == "h264":
        length = _length_bytes(extradata, at=4)
        return lambda packet: _h264_entry(_units(packet, length))
    if codec == "hevc":
        length = _length_bytes(extradata, at=21)
        return lambda packet: _unit_entry(
            (unit[0] >> 1 & 63 for unit in _units(packet, length)), HEVC_SLICES, HEVC_IDR, HEVC_ENTRIES
        )
    if codec == "vvc":
        length = _length_bytes(extradata, at=4)
        return lambda packet: _unit_entry(
            (unit[1] >> 3 for unit in _units(packet, length) if len(unit) > 1), VVC_SLICES, VVC_IDR, VVC_ENTRIES
        )
    return _SIMPLE.get(codec, lambda packet: Entry.CLOSED)


def _length_bytes(extradata: bytes | None, at: int) -> int:
    """Bytes of the length before each unit; 0 where start codes divide them, as in Annex B of the standards."""
    if extradata is None or len(extradata) <= at or extradata[:3] in (b"\0\0\0", b"\0\0\1"):
        return 0
    return (extradata[at] & 3) + 1


def _units(packet: bytes, length_bytes: int) -> Iterator[bytes]:
    """The units of a packet: parameter sets, messages, slices. One that is cut short ends them."""
    if length_bytes == 0:
        for unit in packet.split(b"\0\0\1")[1:]:
            if unit:
                yield unit
        return
    start = 0
    while start + length_bytes < len(packet):
        begin = start + length_bytes
        start = begin + int.from_bytes(packet[start:begin], "big")
        if start > begin:
            yield packet[begin:start]


def _unit_entry(types: Iterator[int], slices: range, idr: range, entries: range) -> Entry:
    """Kind by the type of the first slice; the others of a picture have the same."""
    first = next((kind for kind in types if kind in slices), None)
    if first in idr:
        return Entry.CLOSED
    return Entry.OPEN if first in entries else Entry.NONE


def _h264_entry(units: Iterator[bytes]) -> Entry:
    """CLOSED with an IDR slice; OPEN with intra slices alone, and a message that the picture is whole at once."""
    whole_at_once = False
    pictures = 0
    for unit in units:
        kind = unit[0] & 31
        if kind == H264_IDR:
            return Entry.CLOSED
        if kind == H264_SEI:
            whole_at_once |= _recovers_at_once(unit[1:])
        elif kind in H264_SLICES:
            first_macroblock, slice_type = _exp_golomb(_unescaped(unit[1 : 1 + HEADER_BYTES]), 2)
            pictures += first_macroblock == 0
            # The second field of a picture may refer to the first.
            if pictures < 2 and slice_type not in H264_INTRA_SLICES:
                return Entry.NONE
    return Entry.OPEN if whole_at_once and pictures else Entry.NONE


def _recovers_at_once(message: bytes) -> bool:
    """Return whether supplemental information holds a recovery point with no frames to wait for."""
    payload, at = _unescaped(message), 0
    while at + 2 < len(payload):
        numbers = []
        for _ in range(2):  # type and size, each a sum of bytes up to the first that is not 255
            number = 0
            while at < len(payload) and payload[at] == 255:
                number, at = number + 255, at + 1
            numbers.append(number + payload[at] if at < len(payload) else number)
            at += 1
        if numbers[0] == RECOVERY_POINT:
            return at < len(payload) and payload[at] >= 128  # the first bit alone is the number 0
        at += numbers[1]
    return False


def _unescaped(unit: bytes) -> bytes:
    """Without the bytes that keep start codes from appearing in a unit."""
    return unit.replace(b"\0\0\3", b"\0\0")


def _exp_golomb(data: bytes, count: int) -> list[int]:
    """The first unsigned numbers in Exp-Golomb code; -1 for those behind the end.

    >>> _exp_golomb(bytes([0b1_010_0011, 0b0_0000000]), 3)
    [0, 1, 5]
    """
    bits, numbers, at = "".join(f"{byte:08b}" for byte in data), [], 0
    for _ in range(count):
        one = bits.find("1", at)
        end = 2 * one - at + 1
        found = one >= 0 and end <= len(bits)
        numbers.append(int(bits[one:end], 2) - 1 if found else -1)
        at = end if found else len(bits)
    return numbers


def _picture_entry(start_code: bytes, byte: int, shift: int, mask: int, intra: int) -> Callable[[bytes], Entry]:
    """Test of codecs whose first picture header has its type at a fixed place behind a start code."""

    def test(packet: bytes) -> Entry:
        at = packet.find(start_code) + len(start_code) + byte
        known = at >= len(start_code) + byte and at < len(packet)
        return Entry.NONE if known and packet[at] >> shift & mask != intra else Entry.CLOSED

    return test


_SIMPLE: dict[str, Callable[[bytes], Entry]] = {
    "mpeg1video": _picture_entry(b"\0\0\1\0", 1, 3, 7, intra=1),
    "mpeg2video": _picture_entry(b"\0\0\1\0", 1, 3, 7, intra=1),
    "mpeg4": _picture_entry(b"\0\0\1\xb6", 0, 6, 3, intra=0),
    "vp8": lambda packet: Entry.NONE if packet[:1] and packet[0] & 1 else Entry.CLOSED,
}
