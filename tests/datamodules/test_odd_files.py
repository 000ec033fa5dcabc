"""Files and folders that no reader may hang at, ask for all memory for, or answer with a traceback."""

import os
import re
import subprocess
import sys
import time
import tracemalloc
from contextlib import contextmanager
from pathlib import Path

import pytest

from datamodules.annotations.segment_source import find_videos
from datamodules.errors import UserError
from datamodules.frames.cache import FrameCache
from datamodules.frames.store import LONGEST_TO_SHORTEST, DecodedFrames, FrameScale
from datamodules.video.listing import list_frames
from datamodules.video.picture_folder import PictureFolder, list_pictures
from datamodules.video.readers import VideoError, open_video
from datamodules.video.source_files import files_of
from tests.datamodules.miniature import encode, numbered_frames, read_numbers, write_pictures
from tests.datamodules.written_videos import write_video
from tests.flat_data import predict_data

ROOT = Path(__file__).parents[2]


@contextmanager
def within(seconds: float):
    """Fail if the block takes longer. What hangs for ever is ended by ``in_another_process``."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


def in_another_process(code: str) -> str:
    """Return what a program prints; a reader that waits for ever is ended after a minute."""
    program = f"import sys; sys.path.insert(0, '.')\n{code}"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    return done.stdout.strip() or done.stderr


# --- pipes, devices, folders, links ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "folder", "absent", "too long", "below a file", "circle"])
def test_what_is_no_file_is_refused_by_its_name(tmp_path, kind):
    path = tmp_path / "camera.mp4"
    reason = {"absent": "no such video", "folder": "is a folder, not a video file"}.get(kind, "cannot be read")
    if kind == "pipe":
        os.mkfifo(path)
        reason = "is a pipe or a device, not a video file"
    elif kind == "device":
        path.symlink_to("/dev/zero")
        reason = "is a pipe or a device, not a video file"
    elif kind == "socket":
        import socket

        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
        reason = "is a pipe or a device, not a video file"
    elif kind == "folder":
        path.mkdir()
    elif kind == "too long":
        path = tmp_path / ("n" * 300 + ".mp4")
    elif kind == "below a file":
        (tmp_path / "file").touch()
        path = tmp_path / "file" / "camera.mp4"
    elif kind == "circle":
        path.symlink_to(tmp_path / "other.mp4")
        (tmp_path / "other.mp4").symlink_to(path)
    with within(5):
        for read in (
            list_frames,
            open_video,
            lambda path: FrameCache(tmp_path / "cache", FrameScale(48)).build([path]),
        ):
            with pytest.raises(VideoError) as error:
                read(path)
            assert str(error.value).startswith(f"{path}: {reason}")


def test_errors_about_videos_are_errors_of_the_user_and_travel_between_processes(tmp_path):
    import pickle

    with pytest.raises(UserError) as error:
        open_video(tmp_path / "absent.mp4")
    again = pickle.loads(pickle.dumps(error.value))
    assert type(again) is VideoError and str(again) == str(error.value) and again.where == tmp_path / "absent.mp4"


def test_names_do_not_act_upon_the_terminal(tmp_path):
    path = tmp_path / "cam\x1b[2J\n.mp4"
    path.touch()
    with pytest.raises(VideoError) as error:
        list_frames(path)
    assert str(error.value) == f"{tmp_path}/cam\\x1b[2J\\n.mp4: the file is empty (0 bytes)"
    folder = write_pictures(tmp_path / "film\x1b[2J", 3, "img_{:05d}.png")
    (folder / "img_00002.png").unlink()
    with pytest.warns(UserWarning, match="pictures are missing") as told:
        list_pictures(PictureFolder(folder))
    assert "\x1b" not in str(told[0].message)


def test_a_pipe_among_pictures_is_refused_by_its_name(tmp_path):
    folder = write_pictures(tmp_path / "film", 4, "img_{:05d}.png")
    (folder / "img_00002.png").unlink()
    os.mkfifo(folder / "img_00002.png")
    code = (
        "from pathlib import Path\n"
        "from datamodules.video.picture_folder import PictureFolder\n"
        "from datamodules.video.readers import open_video\n"
        f"try: open_video(PictureFolder(Path({str(folder)!r}))).get([1])\n"
        "except ValueError as error: print(error)"
    )
    assert in_another_process(code) == f"{folder}/img_00002.png: is a pipe or a device, not a picture"


def test_a_picture_that_says_to_be_enormous_is_one_that_cannot_be_read(tmp_path):
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    folder = write_pictures(tmp_path / "film", 3, "img_{:05d}.png")
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    content = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    (folder / "img_00002.png").write_bytes(content)
    with open_video(PictureFolder(folder)) as reader, pytest.warns(UserWarning, match="img_00002.png: no readable"):
        assert read_numbers(reader.get([0, 1, 2])) == [0, 0, 2]


def test_a_source_to_predict_on_that_is_not_there_is_named(tmp_path):
    for source, reason in (("nowhere", "no such source"), ("n" * 300, "cannot be read")):
        with pytest.raises(UserError, match=f"{source}: {reason}.*name a video file"):
            files_of(str(tmp_path / source), 30.0)


def test_links_in_circles_are_looked_into_once(tmp_path):
    deep = tmp_path / "videos" / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "one").symlink_to(tmp_path / "videos")
    (deep / "two").symlink_to(tmp_path / "videos" / "a")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "videos" / "linked").symlink_to(tmp_path / "elsewhere")
    for path in (deep / "film.mp4", tmp_path / "elsewhere" / "v_other.mkv"):
        path.touch()
    code = (
        "from datamodules.annotations.segment_source import find_videos\n"
        f"found = find_videos({str(tmp_path / 'videos')!r}, ['film', 'other', 'absent'])\n"
        "print(sorted((name, path.name) for name, path in found.items()))"
    )
    assert in_another_process(code) == "[('film', 'film.mp4'), ('other', 'v_other.mkv')]"
    assert find_videos(tmp_path / "videos", ["film"]) == {"film": deep / "film.mp4"}
    with pytest.raises(UserError, match="nowhere: no such folder of videos"):
        find_videos(tmp_path / "nowhere", ["film"])


@pytest.mark.parametrize("second", ["b/film.mkv", "a/v_film.mp4", "b/film"])
def test_a_video_that_is_there_twice_is_refused_with_both_paths(tmp_path, second):
    for path in (tmp_path / "a" / "film.mp4", tmp_path / second):
        path.parent.mkdir(exist_ok=True)
        path.touch() if path.suffix else path.mkdir()
    with pytest.raises(UserError, match=r"the video 'film' is there twice, as .*film") as error:
        find_videos(tmp_path, ["film"])
    assert {str(tmp_path / "a" / "film.mp4"), str(tmp_path / second)} <= set(
        re.findall(r"[^ :,]*film[.\w]*", str(error.value))
    )
    (tmp_path / "link.d").mkdir()
    (tmp_path / second).rename(tmp_path / "other.mkv")
    (tmp_path / "link.d" / "film.mp4").symlink_to(tmp_path / "a" / "film.mp4")
    assert find_videos(tmp_path, ["film"])["film"].resolve() == tmp_path / "a" / "film.mp4"


# --- numbers that are time stamps ------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [1_700_000_000, 1_700_000_000_123, 20240131120000, 10**24])
def test_pictures_named_by_time_stamps_are_refused(tmp_path, first):
    folder = PictureFolder(write_pictures(tmp_path / "film", 12, "cam_{}.jpg", first=first))
    tracemalloc.start()
    with (
        within(5),
        pytest.raises(VideoError, match=rf"film: its 12 pictures are numbered up to {first + 11}, .*number"),
    ):
        list_pictures(folder)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_pictures_of_a_longer_film_keep_their_numbers(tmp_path):
    folder = PictureFolder(write_pictures(tmp_path / "film", 3, "img_{:06d}.jpg", first=54_000))
    with pytest.warns(UserWarning, match="53999 of 54002 pictures are missing"):
        listing = list_pictures(folder)
    assert len(listing.times) == 54_002 and listing.times[-1] == pytest.approx(54_001 / 30)
    with open_video(folder) as reader:
        assert read_numbers(reader.get([54_000])) == [1]


def test_pictures_in_an_unknown_format_are_told(tmp_path):
    path = encode(tmp_path / "film.mkv", 6, preset="ultrafast")
    path.write_bytes(path.read_bytes().replace(b"V_MPEG4/ISO/AVC", b"V_MPEG9/ISO/XYZ"))
    with pytest.raises(VideoError, match=r"film\.mkv: its pictures are in a format that cannot be decoded"):
        open_video(path)


# --- thin frames -----------------------------------------------------------------------------------------------------


def thin(path: Path, width: int, height: int) -> Path:
    import av

    with av.open(str(path), "w") as output:
        stream = output.add_stream("ffv1", rate=8)
        stream.width, stream.height, stream.pix_fmt = width, height, "bgr0"
        for frame in numbered_frames(4, height, width):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode())
    return path


@pytest.mark.parametrize(("width", "height", "scaled"), [(2, 200, "128x12800"), (1024, 16, "8192x128")])
def test_frames_that_would_become_huge_are_refused_with_their_size_and_the_way_out(tmp_path, width, height, scaled):
    path = thin(tmp_path / "thin.mkv", width, height)
    words = rf"thin\.mkv: frames of {width}x{height} pixels are too thin: .* they would be {scaled}; .*max_long_side"
    stores = DecodedFrames(FrameScale(128)), FrameCache(tmp_path / "cache", FrameScale(128))
    for store in stores:
        for read in (lambda store: store.facts(path), lambda store: store.get(path, [0])):
            with pytest.raises(VideoError, match=words):
                read(store)
    with pytest.raises(VideoError, match=words):
        stores[1].build([path])
    stores[1].build([path], skip_broken=True)
    with pytest.raises(VideoError, match=words):
        stores[1].facts(path)
    data = predict_data(str(path), classes=["walk"], short_side=128)
    with pytest.raises(VideoError, match=words):
        data.setup("predict")


def test_thin_frames_whose_long_side_is_bounded_are_read(tmp_path):
    path = thin(tmp_path / "thin.mkv", 2, 200)
    assert DecodedFrames(FrameScale(128, max_long_side=256)).get(path, [0]).shape == (1, 256, 3, 3)
    assert DecodedFrames(FrameScale(None)).get(path, [0]).shape == (1, 200, 2, 3)
    assert FrameScale(128, max_long_side=256).size(1, 5000) == (1, 256)  # never none at all


def test_wide_frames_of_usual_shapes_are_read():
    assert FrameScale(128).size(1080, 7680) == (128, 910)  # four cameras side by side
    assert FrameScale(128).size(10, 10 * LONGEST_TO_SHORTEST) == (128, 1280)


# --- text that is not UTF-8 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi", "mov"])
def test_titles_in_any_encoding_do_not_matter(tmp_path, ending):
    import av

    path, plain = tmp_path / f"film.{ending}", encode(tmp_path / f"plain.{ending}", 12, codec="mpeg4")
    with av.open(str(plain)) as old, av.open(str(path), "w") as new:
        new.metadata["title"] = "Gru\u00df aus K\u00f6ln"
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = stream
                new.mux(packet)
    content = path.read_bytes()
    assert "Köln".encode() in content
    path.write_bytes(content.replace("Köln".encode(), b"K\xf6\xfflln"[:5]).replace("Gruß".encode(), b"Gru\xdf\xff"))
    with pytest.raises(UnicodeDecodeError):
        av.open(str(path)).close()
    with open_video(path) as reader:
        assert read_numbers(reader.get(range(12))) == list(range(12))
    from datamodules.video.readers import _AvReader

    with _AvReader(path, list_frames(path), 1) as reader:
        assert read_numbers(reader.get([5, 11])) == [5, 11]


def test_names_that_are_not_utf_8_are_read(tmp_path):
    path = tmp_path / os.fsdecode(b"K\xf6ln.mp4")
    write_video(tmp_path / "film.mp4", numbered_frames(6), fps=8)
    (tmp_path / "film.mp4").rename(path)
    with open_video(path) as reader:
        assert read_numbers(reader.get([4, 1])) == [4, 1]
    cache = FrameCache(tmp_path / "cache", FrameScale(48))
    assert cache.get(path, [3]).shape == (1, 48, 64, 3)
    folder = write_pictures(tmp_path / "film", 3, "img_{:05d}.png").rename(tmp_path / os.fsdecode(b"K\xf6ln"))
    with open_video(PictureFolder(folder)) as reader:
        assert read_numbers(reader.get([2, 0])) == [2, 0]


# --- writing ---------------------------------------------------------------------------------------------------------
