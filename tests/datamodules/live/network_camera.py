"""A network camera for tests: a video file sent at its own speed over HTTP, with connections that stall and die."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import NamedTuple

import numpy as np

from datamodules.video.readers import open_video


class Connection(NamedTuple):
    """Behaviour of one connection to the camera."""

    video: Path
    start: int = 0
    frames: int | None = None
    """Frames sent before the connection ends; None sends the whole file."""
    stalls: bool = False
    """True if it is then held open without data instead of being closed."""


@contextmanager
def network_camera(*connections: Connection, refuse_afterwards: bool = True, timed: bool = False) -> Iterator[str]:
    """The address of a camera whose n-th connection does as the n-th argument says.

    Args:
        refuse_afterwards: whether further connections are answered with an error; else the last is repeated.
        timed: MPEG-TS, which has time stamps, instead of MJPEG, which has none.
    """
    over = Event()
    served = iter(range(10**6))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Not on the terminal."""

        def do_GET(self) -> None:
            number = next(served)
            if number >= len(connections) and refuse_afterwards:
                self.send_error(503)
                return
            self.send_response(200)
            kind = "video/mp2t" if timed else "multipart/x-mixed-replace;boundary=frame"
            self.send_header("Content-Type", kind)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            with suppress(OSError):  # the reader has gone
                self._send(connections[min(number, len(connections) - 1)])
            self.close_connection = True

        def _send(self, connection: Connection) -> None:
            write = _TransportStream(self._chunk) if timed else self._picture
            for frame in paced(connection, over):
                write(frame)
            if connection.stalls:
                over.wait(30)
            self.wfile.write(b"0\r\n\r\n")

        def _picture(self, frame: np.ndarray) -> None:
            import cv2

            data = cv2.imencode(".jpg", frame[..., ::-1])[1].tobytes()
            self._chunk(
                b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(data) + data + b"\r\n"
            )

        def _chunk(self, data: bytes) -> None:
            self.wfile.write(b"%x\r\n" % len(data) + data + b"\r\n")
            self.wfile.flush()

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/live"
        finally:
            over.set()
            server.shutdown()


def paced(connection: Connection, over: Event) -> Iterator[np.ndarray]:
    """The frames of a file, each at its time."""
    with open_video(connection.video) as reader:
        stop = reader.num_frames if connection.frames is None else connection.start + connection.frames
        began = time.monotonic() - reader.times[connection.start]
        for index in range(connection.start, stop):
            if over.wait(max(0.0, began + reader.times[index] - time.monotonic())):
                return
            yield reader.get([index])[0]


class _TransportStream:
    """Frames as h264 in MPEG-TS, every frame sent as soon as it is encoded."""

    def __init__(self, send) -> None:
        import av

        self.send = send
        self.container = av.open(self, "w", format="mpegts", options={"flush_packets": "1"}, buffer_size=188)
        self.stream = self.container.add_stream("libx264", rate=20)
        self.stream.pix_fmt = "yuv420p"
        self.stream.options = {"preset": "ultrafast", "tune": "zerolatency", "g": "10"}

    def write(self, data: bytes) -> int:
        self.send(bytes(data))
        return len(data)

    def __call__(self, frame: np.ndarray) -> None:
        import av

        if not self.stream.codec_context.is_open:
            self.stream.height, self.stream.width = frame.shape[:2]
        self.container.mux(self.stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))


class ScriptedSource:
    """A live source without a network: each connection is a list of (seconds to wait, stamp or None, pixels).

    An exception in the place of a frame is raised; after the last connection every further one is refused.
    """

    name = "scripted"

    def __init__(self, *connections: Sequence) -> None:
        self.connections = list(connections)
        self.opened = 0

    def __iter__(self):
        from datamodules.live.sources import Arrival

        self.opened += 1
        if self.opened > len(self.connections):
            raise ConnectionError("refused")
        for step in self.connections[self.opened - 1]:
            if isinstance(step, Exception):
                raise step
            wait, stamp, pixels = step
            time.sleep(wait)
            yield Arrival(lambda pixels=pixels: pixels, stamp)
