"""Frames read alone, with strides and in random order are those of sequential decoding by PyAV."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from datamodules.video.listing import VideoError, list_frames
from datamodules.video.readers import open_video
from tests.datamodules.moving import moving_frames

DATA = Path(__file__).parents[4] / "shared"
JHMDB = sorted((DATA / "data/jhmdb/avi").glob("*/*.avi"))
COUNT = 60
X264 = {"preset": "veryfast", "threads": "1"}
INTRA_REFRESH = X264 | {"intra-refresh": "1", "g": "12"}
OPEN_GROUPS = "open-gop=1:bframes=3:b-adapt=0:keyint=12:min-keyint=12:scenecut=0:ref=4:threads=1"
PYRAMID = "open-gop=1:bframes=5:b-pyramid=normal:keyint=20:min-keyint=1:ref=6:threads=1"
X265 = "log-level=none:keyint=12:min-keyint=12:scenecut=0:bframes=3:pools=none:frame-threads=1"
CODECS: dict[str, tuple[str, dict[str, str]]] = {
    "intra refresh": ("libx264", INTRA_REFRESH),
    "intra refresh at once": ("libx264", INTRA_REFRESH | {"tune": "zerolatency"}),
    "intra refresh, many references": ("libx264", X264 | {"x264-params": "intra-refresh=1:keyint=12:bframes=2:ref=3"}),
    "hevc intra refresh": ("libx265", {"preset": "ultrafast", "x265-params": X265 + ":intra-refresh=1:bframes=0"}),
    "open groups": ("libx264", {"preset": "veryfast", "x264-params": OPEN_GROUPS}),
    "open groups, pyramid": ("libx264", {"preset": "veryfast", "x264-params": PYRAMID}),
    "hevc open groups": ("libx265", {"preset": "ultrafast", "x265-params": X265 + ":open-gop=1"}),
    "one entry": ("libx264", X264 | {"x264-params": "keyint=infinite:scenecut=0:bframes=2"}),
    "closed groups": ("libx264", X264 | {"x264-params": "keyint=12:bframes=3:ref=4"}),
    "hevc closed groups": ("libx265", {"preset": "ultrafast", "x265-params": X265 + ":open-gop=0"}),
    "mpeg2": ("mpeg2video", {"g": "12", "bf": "2"}),
    "mpeg4": ("mpeg4", {"g": "24"}),
    "vp8": ("libvpx", {"g": "24", "cpu-used": "8", "deadline": "realtime"}),
}


def encode(path: Path, kind: str) -> Path:
    import av

    codec, options = CODECS[kind]
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        stream.options = options
        for frame in moving_frames(COUNT, (3, 2), height=96, width=128):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode())
    return path


def copy(source: Path, target: Path, change: Callable[[int, object], bool]) -> Path:
    """Write the packets of a file for which ``change(number, packet)``, which may change them, is true."""
    import av

    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for number, packet in enumerate(old.demux(old.streams.video[0])):
            if packet.size and change(number, packet):
                packet.stream = stream
                new.mux(packet)
    return target


def flag_every_seventh(number: int, packet: object) -> bool:
    packet.is_keyframe |= number % 7 == 0
    return True


def sequential(path: Path) -> list[np.ndarray]:
    import av

    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def check_reading(path: Path, tolerance: int = 0) -> str:
    """Compare every way of reading with sequential decoding; the name of the reader."""
    expected = np.stack(sequential(path))

    def compare(reader, indices):
        got = reader.get(indices).astype(int)
        assert np.abs(got - expected[indices]).max() <= tolerance, f"{path.name}, {list(indices)[:9]}"

    count = len(list_frames(path).times)
    assert count == len(expected)
    for stride in (1, 2, 4, 8):
        with open_video(path) as reader:
            compare(reader, np.arange(0, count, stride))
        with open_video(path) as reader:
            for index in range(0, count, stride):
                compare(reader, [index])
    rng = np.random.default_rng(0)
    with open_video(path) as reader:
        for index in rng.permutation(count).tolist():
            compare(reader, [index])
    for index in rng.permutation(count)[:8].tolist():  # alone, by a reader of its own
        with open_video(path) as reader:
            compare(reader, [index])
    return type(reader).__name__


@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("kind", ["intra refresh", "intra refresh at once", "intra refresh, many references"])
def test_periodic_intra_refresh(tmp_path, kind, ending):
    path = encode(tmp_path / f"camera.{ending}", kind)
    assert check_reading(path) == "_AvReader"
    if ending != "ts":  # decoding begins at the only picture of its own
        assert len(list_frames(path).entry_pts) == 1


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
@pytest.mark.parametrize("kind", ["open groups", "open groups, pyramid", "hevc open groups", "mpeg2"])
def test_open_groups_of_pictures(tmp_path, kind, ending):
    path = encode(tmp_path / f"film.{ending}", kind)
    assert check_reading(path) == "_AvReader"
    assert len(list_frames(path).entry_pts) > 2


@pytest.mark.parametrize(
    "name",
    ["one entry.mp4", "one entry.mkv", "closed groups.mp4", "closed groups.mkv", "hevc closed groups.mp4", "vp8.mkv"],
)
def test_files_that_decord_reads_right_stay_with_it(tmp_path, name):
    kind, _, ending = name.partition(".")
    assert check_reading(encode(tmp_path / f"film.{ending}", kind)) == "_DecordReader"


@pytest.mark.parametrize("name", ["hevc intra refresh.mp4", "hevc intra refresh.mkv"])
def test_hevc_with_intra_refresh(tmp_path, name):
    kind, _, ending = name.partition(".")
    path = encode(tmp_path / f"camera.{ending}", kind)
    check_reading(path)
    # As encoders write it that flag more than the first picture.
    assert check_reading(copy(path, tmp_path / f"flagged.{ending}", flag_every_seventh)) == "_AvReader"


@pytest.mark.parametrize(
    "name",
    [
        "one entry.mp4",
        "one entry.mkv",
        "closed groups.mp4",
        "closed groups.mkv",
        "hevc closed groups.mp4",
        "mpeg2.mkv",
        "mpeg4.mp4",
        "mpeg4.mkv",
        "mpeg4.avi",
        "vp8.mkv",
    ],
)
def test_packets_that_are_wrongly_flagged_as_keyframes(tmp_path, name):
    kind, _, ending = name.partition(".")
    path = copy(encode(tmp_path / f"film.{ending}", kind), tmp_path / f"flagged.{ending}", flag_every_seventh)
    assert check_reading(path) == "_AvReader"


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
@pytest.mark.parametrize("lost", [5, 12])
@pytest.mark.parametrize("kind", ["intra refresh at once", "open groups", "hevc open groups"])
def test_recordings_that_begin_between_two_entries_show_what_can_be_decoded(tmp_path, kind, lost, ending):
    whole = encode(tmp_path / f"whole.{ending}", kind)
    path = copy(whole, tmp_path / f"cut.{ending}", lambda number, packet: number >= lost)
    assert check_reading(path) == "_AvReader"
    assert 24 <= len(list_frames(path).times) <= COUNT - lost


@pytest.mark.skipif(not (DATA / "faults/01-intra-refresh").exists(), reason="the reported file is not on this machine")
@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_the_reported_recording(tmp_path, ending):
    path = DATA / "faults/01-intra-refresh/intra.mp4"
    if ending == "mkv":
        path = copy(path, tmp_path / "intra.mkv", lambda number, packet: True)
    assert check_reading(path) == "_AvReader"


# --- avi files with places that hold no frame ------------------------------------------------------------------------


def with_gaps(path: Path) -> Path:
    """An avi file of 40 frames in 48 places, as those of JHMDB are: the others hold an empty chunk."""
    whole = encode(path.with_name("whole.avi"), "mpeg4")

    def change(number: int, packet: object) -> bool:
        place = number * 6 // 5
        packet.pts = packet.dts = place
        return number < 40

    return copy(whole, path, change)


def test_places_without_a_frame_are_no_lost_frames(tmp_path):
    import av

    path = with_gaps(tmp_path / "gaps.avi")
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 47
    assert check_reading(path) == "_DecordReader"
    times = list_frames(path).times
    np.testing.assert_allclose(times * 25, np.arange(40) * 6 // 5, atol=1e-6)


@pytest.mark.parametrize("part", [0.3, 0.5, 0.8])
def test_a_file_with_such_places_that_is_cut_off_is_refused(tmp_path, part):
    path = with_gaps(tmp_path / "gaps.avi")
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(VideoError, match=r"gaps\.avi: .*truncated"):
        list_frames(path)


def test_a_file_from_whose_middle_packets_are_missing_is_refused(tmp_path):
    import av

    path = with_gaps(tmp_path / "gaps.avi")
    with av.open(str(path)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    content = path.read_bytes()
    path.write_bytes(content[: places[14]] + content[places[24] :])
    with pytest.raises(VideoError, match=r"gaps\.avi: truncated, \d+ of 47 frames"):
        list_frames(path)


@pytest.mark.skipif(not JHMDB, reason="the original files of JHMDB are not on this machine")
@pytest.mark.parametrize("path", JHMDB, ids=lambda path: path.stem[:20])
def test_the_original_files_of_jhmdb_give_all_their_frames(path):
    check_reading(path)
    assert 15 <= len(list_frames(path).times) <= 40


@pytest.mark.skipif(not JHMDB, reason="the original files of JHMDB are not on this machine")
@pytest.mark.parametrize("cut", ["end", "middle"])
def test_an_original_file_of_jhmdb_that_is_cut_is_refused(tmp_path, cut):
    content = JHMDB[0].read_bytes()
    half, third = len(content) // 2, len(content) // 3
    path = tmp_path / "cut.avi"
    path.write_bytes(content[:half] if cut == "end" else content[:third] + content[half:])
    with pytest.raises(VideoError, match=r"cut\.avi: truncated"):
        open_video(path)
    shutil.copy(JHMDB[0], path)
    with open_video(path) as reader:
        assert reader.num_frames == 40
