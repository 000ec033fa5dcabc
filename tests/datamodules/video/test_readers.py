import gc
import json
import multiprocessing
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from datamodules.video import readers as video_module
from datamodules.video.listing import list_frames
from datamodules.video.readers import VideoError, nearest_frame, open_video
from tests.datamodules.miniature import damage, encode, numbered_frames, read_numbers
from tests.datamodules.written_videos import write_video

CLIPS = Path(__file__).parents[4] / "shared/data/clips"
needs_clips = pytest.mark.skipif(not CLIPS.exists(), reason="real clips are not on this machine")
TEXT = "no video at all " * 50
B_FRAMES = {"bf": "2", "g": "30", "preset": "ultrafast", "threads": "1"}
OPEN_GROUPS = {"x264-params": "open-gop=1:bframes=3:b-adapt=0:keyint=30:min-keyint=30:scenecut=0:threads=1"}


def reader_name(path):
    with open_video(path) as reader:
        return type(reader).__name__


def trim(source: Path, target: Path, seconds: float) -> Path:
    """Return a file of ``ffmpeg -ss SECONDS -c copy``: whole groups of pictures, an edit list that hides the start."""
    import av

    with av.open(str(source)) as old, av.open(str(target), "w", options={"avoid_negative_ts": "disabled"}) as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        start = round(seconds / stream.time_base)
        old.seek(start, stream=stream)
        for packet in old.demux(stream):
            if packet.size:
                packet.pts, packet.dts, packet.stream = packet.pts - start, packet.dts - start, copy
                new.mux(packet)
    return target


def sound(path: Path) -> None:
    """Write a file with sound alone."""
    import av

    with av.open(str(path), "w") as output:
        stream = output.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        output.mux(stream.encode(frame))
        output.mux(stream.encode())


@pytest.mark.parametrize(
    ("name", "reader", "arguments"),
    [
        ("plain.mp4", "_DecordReader", {"bf": "2", "g": "30", "preset": "veryfast", "threads": "1"}),
        ("mpeg4.avi", "_DecordReader", {"codec": "mpeg4", "g": "30"}),
        ("mpeg4_b.avi", "_AvReader", {"codec": "mpeg4", "g": "30", "bf": "2"}),
        ("h264.avi", "_AvReader", B_FRAMES),
        ("open_groups.mp4", "_AvReader", OPEN_GROUPS),
        ("stream.h264", "_AvReader", B_FRAMES),
        ("vp9.webm", "_DecordReader", {"codec": "libvpx-vp9", "cpu-used": "8", "deadline": "realtime", "g": "30"}),
    ],
)
def test_every_frame_has_its_number_in_any_order(tmp_path, name, reader, arguments):
    path = encode(tmp_path / name, 90, **arguments)
    shuffled = np.random.default_rng(0).integers(0, 90, 40)
    with open_video(path) as opened:
        assert type(opened).__name__ == reader
        assert (opened.num_frames, opened.height, opened.width) == (90, 96, 128)
        assert read_numbers(opened.get(range(90))) == list(range(90))
        assert read_numbers(opened.get(shuffled)) == shuffled.tolist()
        assert [read_numbers(opened.get([i]))[0] for i in shuffled[:10]] == shuffled[:10].tolist()
        assert np.all(np.diff(opened.times) > 0)


@pytest.mark.slow
def test_transport_streams_with_b_frames_are_read_to_the_end_by_pyav(tmp_path):
    # decord never returns from these; in another process a relapse would be noticed.
    path = encode(tmp_path / "b.ts", 100, container="mpegts", **B_FRAMES)
    code = (
        "import sys; sys.path.insert(0, '.')\n"
        "from datamodules.video.readers import open_video\n"
        "from tests.datamodules.miniature import read_numbers\n"
        f"reader = open_video({str(path)!r})\n"
        "print(type(reader).__name__, read_numbers(reader.get([99, 0, 50, 98])), reader.num_frames)"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "_AvReader [99, 0, 50, 98] 100", done.stderr


def test_recordings_cut_anywhere_start_with_their_first_whole_frame(tmp_path):
    whole = encode(tmp_path / "whole.ts", 100, container="mpegts", **B_FRAMES)
    (tmp_path / "cut.ts").write_bytes(whole.read_bytes()[5000:])
    with open_video(tmp_path / "cut.ts") as reader:
        numbers = read_numbers(reader.get(range(reader.num_frames)))
    assert numbers[0] > 0 and numbers == list(range(numbers[0], 100))


def test_frames_hidden_by_an_edit_list_do_not_count(tmp_path):
    source = encode(tmp_path / "whole.mp4", 120, bf="2", g="30", sc_threshold="0", preset="veryfast", threads="1")
    path = trim(source, tmp_path / "trimmed.mp4", seconds=41 / 30)
    shuffled = np.random.default_rng(0).integers(0, 79, 30)
    with open_video(path) as reader:
        assert type(reader).__name__ == "_AvReader"
        assert reader.num_frames == 79
        assert read_numbers(reader.get(range(79))) == list(range(41, 120))
        assert [read_numbers(reader.get([i]))[0] for i in shuffled] == (shuffled + 41).tolist()
        np.testing.assert_allclose(reader.times, np.arange(79) / 30, atol=1e-6)


@needs_clips
@pytest.mark.parametrize("name", sorted(json.loads((CLIPS / "facts.json").read_text())) if CLIPS.exists() else [])
def test_real_clips_have_the_frames_and_times_that_their_facts_say(name):
    facts = json.loads((CLIPS / "facts.json").read_text())[name]
    decodable = facts["pyav_frames"]
    if name == "odd/nasa_13013.mp4":  # two video streams: we take the one that players take, the facts are of the other
        facts |= {"display_wh": [480, 270], "pyav_frames": 390, "last_time": 12.9796, "steps": [0.033]}
        facts["first_frame_mean_rgb"] = [8.85, 8.10, 14.19]
        decodable = 390
    if facts["decode_error"]:  # its index lists all frames
        facts |= {"pyav_frames": facts["meta_frames"], "last_time": 4.9}
    with open_video(CLIPS / name) as reader:
        assert [reader.width, reader.height] == facts["display_wh"]
        assert reader.num_frames == len(reader.times) == facts["pyav_frames"]
        assert reader.times[0] == pytest.approx(facts["first_time"], abs=1e-4)
        assert reader.times[-1] == pytest.approx(facts["last_time"], abs=1e-4)
        if facts["times_increase"]:
            assert {*np.diff(reader.times).round(3).tolist()} == {*facts["steps"]}
        assert np.all(np.diff(reader.times) > 0)
        first = reader.get([0])
        assert first.shape == (1, reader.height, reader.width, 3)
        np.testing.assert_allclose(first.mean((0, 1, 2)), facts["first_frame_mean_rgb"], atol=0.02)
        assert len(reader.get([decodable - 1, decodable // 2])) == 2
        if decodable < reader.num_frames:
            for later in (decodable, reader.num_frames - 1):
                with pytest.raises(VideoError, match=f"{name}: corrupt at frame {decodable} "):
                    reader.get([later])
            assert len(reader.get([decodable - 1])) == 1  # damage behind a frame does not spoil it


@needs_clips
@pytest.mark.parametrize("name", ["SOX5yA1l24A.mp4", "odd/video_90.mov", "odd/flipping_a_pancake.mkv"])
def test_both_readers_give_the_same_pixels(name):
    with open_video(CLIPS / name) as by_decord:
        by_av = video_module._AvReader(CLIPS / name, list_frames(CLIPS / name), num_threads=1)
        assert type(by_decord).__name__ == "_DecordReader"
        wanted = np.random.default_rng(0).integers(0, by_decord.num_frames, 5)
        np.testing.assert_array_equal(by_av.get(wanted), by_decord.get(wanted))
        by_av.close()


@pytest.mark.parametrize(("frame", "first_reader"), [(53, "_DecordReader"), (50, "_AvReader")])
def test_where_decord_gives_up_in_the_middle_of_a_file_pyav_goes_on(tmp_path, frame, first_reader):
    # Frame 50 is a keyframe: damaged, it is none, and PyAV reads all of the file.
    path = damage(encode(tmp_path / "damaged.mp4", 90, g="10", bf="0", preset="ultrafast", threads="1"), frame)
    with open_video(path) as reader:
        assert type(reader).__name__ == first_reader
        assert read_numbers(reader.get([3, 49])) == [3, 49]
        with pytest.raises(VideoError, match=rf"damaged\.mp4: corrupt at frame {frame} \("):
            reader.get(range(45, 60))
        # Before and after the group of pictures that is damaged.
        assert read_numbers(reader.get([49, 0, 60, 89])) == [49, 0, 60, 89]
        with pytest.raises(VideoError, match=f"corrupt at frame {frame}"):
            reader.get([frame + 1])


@pytest.mark.parametrize(("degrees", "turns"), [(90, 3), (180, 2), (270, 1)])
def test_frames_are_turned_as_the_file_asks(tmp_path, degrees, turns):
    upright = encode(tmp_path / "upright.mp4", 8, preset="ultrafast", threads="1")
    turned = tmp_path / "turned.mp4"
    content = bytearray(upright.read_bytes())
    cosine, sine = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    matrix = content.find(b"tkhd") + 44  # behind version, times, track, duration, layer, group and volume
    assert content[matrix : matrix + 8] == struct.pack(">ii", 1 << 16, 0)
    content[matrix : matrix + 20] = struct.pack(">iiiii", cosine << 16, sine << 16, 0, -sine << 16, cosine << 16)
    turned.write_bytes(content)
    with open_video(upright) as before, open_video(turned) as after:
        expected = np.rot90(before.get([5])[0], turns)
        assert (after.height, after.width) == expected.shape[:2]
        np.testing.assert_array_equal(after.get([5])[0], expected)
        with video_module._AvReader(turned, list_frames(turned), num_threads=1) as by_av:
            np.testing.assert_array_equal(by_av.get([5])[0], expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cut.avi", "cut.mkv", "cut.webm"])
def test_files_that_lack_much_of_what_their_header_promises_are_called_truncated(tmp_path, name):
    arguments = {"codec": "mpeg4"} if name == "cut.avi" else {"preset": "ultrafast"}
    if name == "cut.webm":
        arguments = {"codec": "libvpx", "cpu-used": "8", "deadline": "realtime"}
    path = encode(tmp_path / name, 150, g="10", **arguments)
    with open_video(path) as reader:
        assert reader.num_frames == 150
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(VideoError, match=rf"{name}: .*truncated"):
        open_video(path)


@pytest.mark.parametrize("seconds", [0, 5, 3600])
def test_a_matroska_file_whose_clock_goes_on_from_an_earlier_part_is_whole(tmp_path, seconds):
    import av

    path = tmp_path / "part.mkv"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for number, picture in enumerate(numbered_frames(20)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = 10 * seconds + number
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    np.testing.assert_allclose(list_frames(path).times, np.arange(20) / 10, atol=1e-3)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 4])
    with pytest.raises(VideoError, match=r"part\.mkv: truncated, its frames end at 0\.\d s of 2\.0 s"):
        list_frames(path)


def test_the_video_with_more_than_8_bits_is_read_by_pyav(tmp_path):
    import av

    path = tmp_path / "ten.mp4"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p10le"
        for frame in numbered_frames(20):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode())
    with open_video(path) as reader:
        assert type(reader).__name__ == "_AvReader"
        assert read_numbers(reader.get([19, 0, 7])) == [19, 0, 7]


def test_unreadable_files_are_named_with_the_reason(tmp_path):
    whole = encode(tmp_path / "whole.mp4", 60, preset="ultrafast", threads="1").read_bytes()
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text(TEXT)
    (tmp_path / "text.avi").write_text(TEXT)
    sound(tmp_path / "sound.mp4")
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "folder.mp4").mkdir()
    reasons = {
        "absent.mp4": "no such video file",
        "empty.mp4": "empty",
        "text.mp4": "not a readable video",
        "text.avi": "not a readable video",
        "sound.mp4": "holds no video stream",
        "half.mp4": "truncated",
        "folder.mp4": "a folder",
    }
    for name, reason in reasons.items():
        with pytest.raises(VideoError, match=f"{name}: .*{reason}"):
            open_video(tmp_path / name)


def test_an_mp4_cut_short_behind_its_index_is_called_truncated(tmp_path):
    import av

    source = encode(tmp_path / "whole.mp4", 90, preset="ultrafast", threads="1")
    front = tmp_path / "front.mp4"
    with av.open(str(source)) as old, av.open(str(front), "w", options={"movflags": "faststart"}) as new:
        copy = new.add_stream_from_template(old.streams.video[0])
        positions = []
        for packet in old.demux(old.streams.video[0]):
            if packet.size:
                packet.stream = copy
                new.mux(packet)
    with av.open(str(front)) as written:
        positions = [packet.pos for packet in written.demux(written.streams.video[0]) if packet.size]
    content = front.read_bytes()
    for end in (positions[50], positions[50] + 10):  # between two frames, and within one
        front.write_bytes(content[:end])
        with pytest.raises(VideoError, match=r"front\.mp4: truncated"):
            open_video(front)


@pytest.mark.slow
def test_pictures_can_be_read_after_decord_has_been_used(tmp_path):
    # In another process: here cv2 has long been loaded.
    path = write_numbered(tmp_path, 10)
    code = (
        "import sys; sys.path.insert(0, '.')\n"
        "from pathlib import Path\n"
        "from datamodules.video.readers import open_video\n"
        "from datamodules.video.picture_folder import PictureFolder\n"
        "from tests.datamodules.miniature import read_numbers, write_pictures\n"
        f"print(read_numbers(open_video({str(path)!r}).get([7])))\n"
        f"folder = write_pictures(Path({str(tmp_path)!r}) / 'film', 5, '{{:05d}}.png')\n"
        "print(read_numbers(open_video(PictureFolder(folder)).get([3])))"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["[7]", "[3]"], done.stderr


def test_a_forked_process_may_drop_the_readers_of_its_parent(tmp_path):
    path = write_numbered(tmp_path, 10)
    reader = open_video(path)
    assert type(reader).__name__ == "_DecordReader" and read_numbers(reader.get([3])) == [3]
    by_av = video_module._AvReader(path, list_frames(path), num_threads=1)
    assert read_numbers(by_av.get([3])) == [3]

    def drop():
        nonlocal reader, by_av
        reader.close()
        by_av.close()
        del reader, by_av

    process = multiprocessing.get_context("fork").Process(target=drop)
    process.start()
    process.join(60)
    assert process.exitcode == 0  # else decord ends it: "terminate called after throwing std::system_error"
    assert read_numbers(reader.get([4])) == [4]


def test_a_forked_process_does_not_collect_the_garbage_of_its_parent():
    class Decoder:
        def __del__(self):
            if os.getpid() != parent:
                os._exit(3)  # a real one would hang, or end the process by a signal

    parent = os.getpid()
    gc.collect()
    gc.disable()
    try:
        decoder = Decoder()
        decoder.cycle = decoder
        del decoder
        process = multiprocessing.get_context("fork").Process(target=gc.collect)
        process.start()
        process.join(60)
    finally:
        gc.enable()
    assert process.exitcode == 0


def test_frames_that_do_not_exist_are_refused(tmp_path):
    with open_video(write_numbered(tmp_path, 10)) as reader:
        assert reader.get([]).shape == (0, 96, 128, 3)
        for wanted in ([10], [-1]):
            with pytest.raises(IndexError, match=r"frames 0\.\.9"):
                reader.get(wanted)


def test_a_listing_notices_that_its_file_has_changed(tmp_path):
    assert len(list_frames(write_numbered(tmp_path, 10)).times) == 10
    assert len(list_frames(write_numbered(tmp_path, 14)).times) == 14


def test_the_buffer_of_a_pyav_reader_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(video_module, "BUFFER_BYTES", 3 * 96 * 128 * 3)
    path = encode(tmp_path / "mpeg4_b.avi", 30, codec="mpeg4", bf="2")
    with open_video(path) as reader:
        assert read_numbers(reader.get([20, 3, 20, 7, 3, 29])) == [20, 3, 20, 7, 3, 29]
        assert len(reader._buffer) == 3


def test_nearest_frame_prefers_the_earlier_of_two():
    times = np.array([0.0, 0.1, 0.2, 0.5])
    assert nearest_frame(times, 0.36).item() == 3
    assert nearest_frame(times, np.array([0.25, 0.35, 0.05, -1, 7])).tolist() == [2, 2, 0, 0, 3]
    slow = [int(np.abs(times - t).argmin()) for t in np.linspace(-0.1, 0.7, 77)]
    assert nearest_frame(times, np.linspace(-0.1, 0.7, 77)).tolist() == slow


def test_written_videos_have_their_frame_rate(tmp_path):
    path = tmp_path / "ntsc.mp4"
    write_video(path, numbered_frames(30), fps=29.97)
    np.testing.assert_allclose(list_frames(path).times, np.arange(30) / 29.97, atol=1e-5)
    assert reader_name(path) == "_DecordReader"


def write_numbered(folder: Path, count: int) -> Path:
    write_video(folder / "numbered.mp4", numbered_frames(count), fps=8)
    return folder / "numbered.mp4"
