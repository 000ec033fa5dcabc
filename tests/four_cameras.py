"""Four cameras over HTTP and the command that predicts on them: one is well, one stalls, one sends garbage, one leaves.

    python -m tests.four_cameras --seconds 300

prints the memory at start and end, and for each camera its frames, losses and delay; results/pages/cameras.md keeps
them.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path

import numpy as np

from datamodules.puppets import Puppets
from datamodules.video.readers import list_video, open_video

ROOT = Path(__file__).resolve().parent.parent
FPS = 16
SHOWS_SECONDS, AWAY_SECONDS = 4.0, 4.0
"""How long the camera that leaves is there, and away; the one that stalls shows frames for as long."""
CAMERAS = ("steady", "stalling", "garbage", "leaving")


def jpegs(film: Path) -> list[bytes]:
    import cv2

    with open_video(film) as reader:
        frames = reader.get(np.arange(len(list_video(film).times)))
    return [cv2.imencode(".jpg", frame[..., ::-1])[1].tobytes() for frame in frames]


@contextmanager
def four_cameras(pictures: list[bytes]) -> Iterator[dict[str, str]]:
    """Yield the addresses of the cameras by their names."""
    over, began = threading.Event(), time.monotonic()
    noise = np.random.default_rng(0).bytes(20_000)
    connections = count()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Not on the terminal."""

        def do_GET(self) -> None:
            name = self.path.strip("/")
            is_away = (time.monotonic() - began) % (SHOWS_SECONDS + AWAY_SECONDS) >= SHOWS_SECONDS
            if name not in CAMERAS or (name == "leaving" and is_away):
                self.send_error(503)
                return
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace;boundary=frame")
            self.end_headers()
            with suppress(OSError):  # the reader has gone
                getattr(self, name)()

        def steady(self, seconds: float = float("inf")) -> None:
            start = time.monotonic()
            for number in count():
                if over.wait(max(0.0, start + number / FPS - time.monotonic())) or number / FPS > seconds:
                    return
                self.part(pictures[number % len(pictures)])

        def stalling(self) -> None:
            self.steady(SHOWS_SECONDS)
            over.wait()

        def leaving(self) -> None:
            self.steady(SHOWS_SECONDS - (time.monotonic() - began) % (SHOWS_SECONDS + AWAY_SECONDS))

        def garbage(self) -> None:
            """Noise as pictures, or noise without end."""
            send = self.part if next(connections) % 2 == 0 else self.wfile.write
            while not over.wait(1 / FPS):
                send(noise)

        def part(self, data: bytes) -> None:
            head = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(data)
            self.wfile.write(head + data + b"\r\n")

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield {name: f"http://127.0.0.1:{server.server_port}/{name}" for name in CAMERAS}
        finally:
            over.set()
            server.shutdown()


def predict_until(
    is_enough: Callable[[subprocess.Popen, Path], bool],
    folder: Path,
    pictures: list[bytes],
    seconds: float,
    threads: int,
) -> tuple[int, str, str]:
    """Run ``main.py predict`` on the four cameras until it is enough, then send SIGTERM.

    Args:
        is_enough: is given the process and the folder of its files, ten times a second.
        folder: where it runs.
        pictures: what the cameras show.
        seconds: after which it must have been enough.
        threads: of the network.

    Returns:
        the exit status, and what was written to stdout and stderr.
    """
    with four_cameras(pictures) as cameras:
        (folder / "cameras.yaml").write_text("".join(f"{name}: {address}\n" for name, address in cameras.items()))
        arguments = ["predict", "--weights", str(ROOT / "results" / "weights" / "dsta.pt"), "--source", "cameras.yaml"]
        arguments += [
            "--trainer.accelerator",
            "cpu",
            "--data.live.stall_seconds",
            "2",
            "--data.live.max_gap_seconds",
            "1",
        ]
        with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
            process = subprocess.Popen(
                [sys.executable, str(ROOT / "main.py"), *arguments],
                cwd=folder,
                env=os.environ | {"OMP_NUM_THREADS": str(threads)},
                stdout=out,
                stderr=err,
            )
            until = time.monotonic() + seconds
            try:
                while process.poll() is None and not is_enough(process, folder / "runs" / "predictions"):
                    assert time.monotonic() < until, (folder / "err").read_text()[-2000:]
                    time.sleep(0.1)
                process.send_signal(signal.SIGTERM)
                process.wait(timeout=60)
            finally:
                process.kill()
    return process.returncode, (folder / "out").read_text(), (folder / "err").read_text()


def health(results: Path) -> dict[str, list[dict]]:
    """The lines of health.jsonl by camera."""
    found: dict[str, list[dict]] = {name: [] for name in CAMERAS}
    if (results / "health.jsonl").is_file():
        for line in (results / "health.jsonl").read_text().splitlines():
            found[json.loads(line)["camera"]].append(json.loads(line))
    return found


def resident_mib(process: subprocess.Popen) -> float:
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def film(folder: Path) -> list[bytes]:
    """JPEGs of one of the Puppets videos."""
    Puppets(root=folder, size="tiny").prepare()
    return jpegs(min(folder.rglob("val_*.mp4")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0, help="how long to predict, from the first frame on")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    memory: list[tuple[float, float]] = []
    began: list[float] = []

    def is_enough(process: subprocess.Popen, results: Path) -> bool:
        if not began and (results / "steady.jsonl").is_file():
            began.append(time.monotonic())
        if began:
            memory.append((time.monotonic() - began[0], resident_mib(process)))
        return bool(began) and memory[-1][0] > options.seconds

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        status, *_ = predict_until(is_enough, folder, film(folder / "puppets"), options.seconds + 120, options.threads)
        lines = health(folder / "runs" / "predictions")
    print(f"exit status {status}")
    for moment in (10.0, 30.0, 60.0, options.seconds / 2, options.seconds):
        near = min(memory, key=lambda each: abs(each[0] - moment))
        print(f"memory after {near[0]:.0f} s: {near[1]:.0f} MiB")
    for name, of_camera in lines.items():
        print(name, json.dumps(of_camera[-1]), "states:", sorted({line["state"] for line in of_camera}))


if __name__ == "__main__":
    main()
