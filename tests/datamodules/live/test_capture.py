"""Live sources: what is kept, dropped, found again, and how it ends."""

from __future__ import annotations

import re
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice

import numpy as np
import pytest

from datamodules.live import feed as live_feed
from datamodules.live import sources as live_source_module
from datamodules.live.capture import LiveCapture, StreamClock
from datamodules.live.sources import Camera, NetworkStream, live_source
from datamodules.sampling.time_grid import TimeGrid, frames_on_grid
from datamodules.video.listing import VideoError
from tests.datamodules.live.network_camera import Connection, ScriptedSource, network_camera
from tests.datamodules.miniature import numbered_frames, read_numbers
from tests.datamodules.written_videos import write_video

FPS = 20
PIXELS = np.zeros((4, 4, 3), np.uint8)
MULTIPART = b"Content-Type: multipart/x-mixed-replace;boundary=frame\r\n"


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Three seconds of numbered frames."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_video(path, numbered_frames(3 * FPS), FPS)
    return path


def capture(source, period: float = 1e-6, **settings) -> LiveCapture:
    settings = {"first_wait_seconds": 0.02, "reconnect_attempts": 4, **settings}
    return LiveCapture(source, TimeGrid(period), threading.Event(), **settings)


def received(frames: LiveCapture, count: int | None = None) -> list:
    with frames:
        return list(islice(frames, count))


def numbers(frames) -> list[int]:
    return [read_numbers(frame.picture()[None])[0] for frame in frames]


@pytest.mark.parametrize("frame_rate", [8, 12.5, 24, 25, 29.97, 30, 50, 60, 120])
def test_any_frame_rate_is_sampled_at_the_pace_of_the_network(frame_rate):
    times = np.arange(int(20 * frame_rate)) / frame_rate
    chosen = times[frames_on_grid(times, 0.125)]
    assert len(chosen) == pytest.approx(160, abs=1)
    # Nearer to its moment than a frame lasts, and hardly early.
    late = chosen - 0.125 * np.arange(len(chosen))
    assert late.min() >= -0.1 * 0.125 and late.max() < max(1 / frame_rate, 1e-9)


def test_a_stride_of_whole_frames_takes_every_how_manieth_frame():
    times = np.arange(100) / 16
    assert frames_on_grid(times, 2 / 16).tolist() == list(range(0, 100, 2))
    milliseconds = np.round(np.arange(100) / 30, 3)  # as Matroska keeps them: 33 and 34 ms
    assert frames_on_grid(milliseconds, 4 / 30).tolist() == list(range(0, 100, 4))


def test_a_frame_that_jitters_or_is_missing_moves_no_other():
    rng = np.random.default_rng(0)
    times = np.arange(200) / 16 + rng.uniform(-0.005, 0.005, 200)
    assert frames_on_grid(times - times[0], 2 / 16).tolist() == list(range(0, 200, 2))
    assert frames_on_grid([0.0, 0.1, 0.2, 0.55, 0.6, 0.7], 0.1).tolist() == [0, 1, 2, 3, 4, 5]
    assert frames_on_grid([0.0, 0.2, 0.4, 1.1, 1.2, 1.4], 0.2).tolist() == [0, 1, 2, 3, 4, 5]


def test_time_goes_by_time_stamps_and_where_they_fail_by_the_clock():
    clock = StreamClock()
    assert clock.tick(500.0, 10.0) == 0
    assert clock.tick(500.5, 10.0) == 0.5  # a burst: both frames came at once
    assert clock.tick(501.0, 11.0) == 1.0
    assert clock.tick(7.0, 11.25) == 1.25  # the source counts anew
    assert clock.tick(7.5, 11.75) == 1.75
    assert clock.tick(900.0, 12.0) == 2.0  # a jump
    clock.reconnect()
    assert clock.tick(900.1, 15.0) == 5.0
    assert clock.tick(None, 15.5) == 5.5


def test_a_slow_model_gets_the_newest_frame_and_the_others_are_counted():
    source = ScriptedSource([(0.01, None, PIXELS)] * 100)
    seen, newer = [], []
    with capture(source) as frames:
        for frame in frames:
            newer.append(frames.received - 1 - frame.index)
            seen.append(frame.index)
            time.sleep(0.1)
            if frame.index > 80:
                break
    assert len(seen) < 30
    assert max(newer) <= 2  # one may come between taking a frame and looking
    assert frames.dropped >= seen[-1] + 1 - len(seen) > 50


def test_a_fast_model_gets_every_frame_that_is_due():
    source = ScriptedSource([(0.01, index / 100, PIXELS) for index in range(60)])
    with capture(source, period=0.04) as frames:
        seen = [frame.index for frame in islice(frames, 15)]
    assert seen == list(range(0, 60, 4))
    assert frames.dropped == 0


def test_a_longer_queue_holds_a_burst():
    source = ScriptedSource([(0.0, index / 10, PIXELS) for index in range(4)] + [(1.0, None, PIXELS)])
    with capture(source, queue_frames=3) as frames:
        time.sleep(0.2)
        seen = [frame.index for frame in islice(frames, 3)]
    assert seen == [1, 2, 3]
    assert frames.dropped == 1


def test_frames_come_over_http_with_their_own_time_stamps(film):
    with network_camera(Connection(film), timed=True) as address:
        frames = capture(NetworkStream(address, stall_seconds=2), period=0.1, queue_frames=60)
        taken = received(frames, 15)
    carried, seconds = numbers(taken), [frame.seconds for frame in taken]
    assert carried == list(range(carried[0], carried[0] + 30, 2))
    assert seconds == pytest.approx(np.arange(15) * 0.1, abs=1e-3)


def test_a_lost_camera_is_found_again_and_time_goes_on(film):
    connections = Connection(film, 0, 10), Connection(film, 20, 10), Connection(film, 40, 10, stalls=True)
    with network_camera(*connections) as address:
        frames = capture(NetworkStream(address, stall_seconds=1), queue_frames=60)
        taken = received(frames, 28)
    carried, seconds = numbers(taken), np.array([frame.seconds for frame in taken])
    expected = {*range(10), *range(20, 30), *range(40, 50)}
    assert carried == sorted(carried) and set(carried) < expected
    assert frames.reconnections == 2
    assert (np.diff(seconds) > 0).all()
    assert [frame.index for frame in taken] == list(range(28))


def test_a_camera_that_stalls_is_left_and_found_again(film):
    with network_camera(Connection(film, 0, 8, stalls=True), Connection(film, 30, 20)) as address:
        frames = capture(NetworkStream(address, stall_seconds=0.5), queue_frames=60)
        taken = received(frames, 20)
    carried = numbers(taken)
    jump = next(at for at, number in enumerate(carried) if number >= 30)
    assert carried[:jump] == list(range(carried[0], carried[0] + jump))
    assert taken[jump].seconds - taken[jump - 1].seconds >= 0.5
    assert frames.reconnections == 1


def test_attempts_to_reconnect_wait_twice_as_long_each_time_and_end(caplog):
    source = ScriptedSource([(0, None, PIXELS)])
    began = time.monotonic()
    with capture(source) as frames, pytest.raises(VideoError) as error:
        list(frames)
    assert "scripted: lost (refused), and 4 attempts to reconnect failed" in str(error.value)
    assert source.opened == 5
    assert 0.02 + 0.04 + 0.08 + 0.16 <= time.monotonic() - began < 2


def test_attempts_are_counted_anew_after_every_frame():
    connections = [[(0, None, PIXELS)], [ConnectionError("no")], [(0, None, PIXELS)], [ConnectionError("no")]]
    source = ScriptedSource(*connections, [(0, None, PIXELS)])
    with capture(source, reconnect_attempts=2, queue_frames=9) as frames, pytest.raises(VideoError, match="2 attempts"):
        list(frames)
    assert source.opened == 5 + 2
    assert frames.received == 3


@pytest.mark.parametrize("source", [ScriptedSource(), Camera(97)], ids=["network", "camera"])
def test_a_source_that_was_never_there_is_an_error_at_once(source, capfd):
    with capture(source) as frames, pytest.raises(VideoError, match=f"{source.name}: cannot be opened"):
        list(frames)
    assert capfd.readouterr().err == ""  # libraries add nothing to the error


def test_what_is_wrong_inside_the_thread_is_raised_outside():
    with pytest.raises(RuntimeError, match="a fault of ours"):
        received(capture(ScriptedSource([RuntimeError("a fault of ours")])))


@pytest.mark.parametrize("how", ["stop", "time"])
def test_a_silent_source_can_be_left(how):
    source = ScriptedSource([(0, None, PIXELS), (10, None, PIXELS)])
    frames = capture(source, max_seconds=0.3 if how == "time" else None)
    if how == "stop":
        threading.Timer(0.3, frames.stop.set).start()
    began = time.monotonic()
    with frames:
        assert len(list(frames)) == 1
        assert 0.25 < time.monotonic() - began < 1


def test_a_file_behind_an_address_is_not_taken_for_a_camera(film):
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            """Not on the terminal."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=film.parent)) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        source = NetworkStream(f"http://127.0.0.1:{server.server_port}/film.mp4", stall_seconds=2)
        with capture(source) as frames, pytest.raises(VideoError, match="a file of 3 s, not a live stream"):
            list(frames)
        server.shutdown()


# --- cameras that are none -------------------------------------------------------------------------------------------


@contextmanager
def sender(send: Callable[[socket.socket], object], head: bytes | None = MULTIPART) -> Iterator[str]:
    """The address of a server that answers every request with a head and whatever ``send`` sends."""

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.recv(65536)
            if head is not None:
                connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n" + head + b"\r\n")
            send(connection)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/live"


def jpeg(height: int = 96, width: int = 128) -> bytes:
    import cv2

    return cv2.imencode(".jpg", next(numbered_frames(1, height, width)))[1].tobytes()


def part(content: bytes, length: int | None = None) -> bytes:
    """One part of a multipart stream; with another length than it has, if that is given, and with none if it is 0."""
    length = len(content) if length is None else length
    head = b"Content-Length: %d\r\n" % length if length else b""
    return b"--frame\r\nContent-Type: image/jpeg\r\n" + head + b"\r\n" + content + b"\r\n"


def endless(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"x" * 65536)


def frames_until_the_end(address: str, stall_seconds: float = 1.0) -> tuple[int, str]:
    """Number of frames that a stream gives, and its end."""
    count = 0
    try:
        for arrival in NetworkStream(address, stall_seconds):
            assert arrival.picture().ndim == 3
            count += 1
    except (ConnectionError, VideoError) as error:
        return count, str(error)
    return count, "the stream ended"


@pytest.mark.parametrize("length", [0, 2_000_000_000])
@pytest.mark.parametrize("good", [0, 3])
def test_a_part_without_an_end_is_left_before_it_fills_the_memory(monkeypatch, length, good):
    monkeypatch.setattr(live_feed, "LARGEST_PART", 8 * 2**20)

    def send(connection: socket.socket) -> None:
        connection.sendall(part(jpeg()) * good + part(jpeg(), length)[:-2])
        endless(connection)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with sender(send) as address:
        count, words = frames_until_the_end(address)
    assert count == good and words == "more than 8 MiB came without a complete picture"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


def test_an_endless_part_ends_in_one_sentence(monkeypatch):
    monkeypatch.setattr(live_feed, "LARGEST_PART", 2**20)
    with sender(lambda connection: (connection.sendall(part(jpeg(), 0)[:-2]), endless(connection))) as address:
        frames = capture(NetworkStream(address, stall_seconds=1))
        with (
            frames,
            pytest.raises(VideoError, match=r"127.0.0.1_live: cannot be opened \(more than 1 MiB came without"),
        ):
            list(frames)


def test_a_picture_that_says_to_be_enormous_is_passed_over():
    enormous = bytearray(jpeg())
    size = enormous.find(b"\xff\xc0") + 5
    enormous[size : size + 4] = b"\xff\xdc\xff\xdc"  # 65,500x65,500

    def send(connection: socket.socket) -> None:
        for _ in range(10):
            connection.sendall(part(jpeg()) + part(bytes(enormous)))

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with sender(send) as address:
        count, _ = frames_until_the_end(address)
    assert count >= 9
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


def trickle(connection: socket.socket) -> None:
    """Three pictures, then every byte of a picture that never ends."""
    connection.sendall(part(jpeg()) * 3 + part(jpeg(), 10**9)[:-2])
    for _ in range(200):
        connection.sendall(b"x")
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("head", "send", "seconds"),
    [
        (None, lambda connection: time.sleep(9), 1.5),
        (MULTIPART, lambda connection: time.sleep(9), 0.5),
        (MULTIPART, lambda connection: (connection.sendall(part(jpeg()) * 3), time.sleep(9)), 0.5),
        (MULTIPART, trickle, 0.5),
    ],
    ids=["no answer", "no frame", "no more frames", "byte by byte"],
)
def test_what_is_said_of_a_wait_is_how_long_it_was(monkeypatch, head, send, seconds):
    monkeypatch.setattr(live_source_module, "OPEN_SECONDS", 1.5)
    began = time.monotonic()
    with sender(send, head) as address:
        _, words = frames_until_the_end(address, stall_seconds=0.5)
    said = float(re.fullmatch(r"no frame within ([0-9.]+) s", words)[1])
    assert said == pytest.approx(seconds, abs=0.25) and said <= time.monotonic() - began + 0.1


def test_what_cannot_be_decoded_is_left_after_a_while(monkeypatch):
    monkeypatch.setattr(live_source_module, "UNDECODABLE_SECONDS", 0.5)

    def send(connection: socket.socket) -> None:
        connection.sendall(part(jpeg()) * 3)
        while True:
            connection.sendall(part(b"\xff\xd8\xff\xd9"))
            time.sleep(0.02)

    with sender(send) as address:
        count, words = frames_until_the_end(address)
    assert (count, words) == (3, "what comes cannot be decoded: damaged, or larger than any picture")


def test_live_titles_in_any_encoding_do_not_matter(tmp_path):
    import av

    path = tmp_path / "film.mkv"
    with av.open(str(path), "w") as output:
        output.metadata["title"] = "Köln"
        stream = output.add_stream("mpeg4", rate=20)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for frame in numbered_frames(20):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode())
    content = path.read_bytes().replace("Köln".encode(), b"K\xf6\xffln")
    with sender(lambda connection: connection.sendall(content), b"Content-Type: video/x-matroska\r\n") as address:
        assert frames_until_the_end(address)[0] == 20


def test_names_and_messages_hold_no_password():
    source = NetworkStream("rtsp://admin:secret@127.0.0.1:9/stream/1", stall_seconds=1)
    assert source.name == "127.0.0.1_stream_1"
    with capture(source) as frames, pytest.raises(VideoError) as error:
        list(frames)
    assert "secret" not in str(error.value)


def test_what_names_a_live_source(tmp_path):
    assert isinstance(live_source("0", 5), Camera)
    assert live_source("2", 5).name == "camera_2"
    assert isinstance(live_source("/dev/null", 5), Camera)  # a device file
    assert isinstance(live_source("rtsp://host/x", 5), NetworkStream)
    assert live_source(str(tmp_path), 5) is None
    assert live_source("film.mp4", 5) is None
