"""Four cameras over HTTP and the command that predicts on them: one is well, one stalls, one sends garbage, one leaves.

    python -m tests.four_cameras --seconds 300

writes results/pages/cameras.md: memory in the course of time, and for each camera its frames, losses and delay. To try
it: --seconds 20 --out /tmp/cameras.md.
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
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from callbacks.benchmark.provenance import commit, device_name, now
from datamodules.files import UNFINISHED, require_writable, write_whole
from datamodules.puppets import Puppets
from datamodules.video.readers import list_video, open_video
from results.tables.markdown import markdown_table

ROOT = Path(__file__).resolve().parent.parent
FPS = 16
SHOWS_SECONDS, AWAY_SECONDS = 4.0, 4.0
"""How long the camera that leaves is there, and away; the one that stalls shows frames for as long."""
START_SECONDS, END_SECONDS = 600.0, 240.0
"""In which the first prediction must be there, and the process be gone after SIGTERM, on a machine however busy."""
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
    more: tuple[str, ...] = (),
) -> tuple[int, str, str]:
    """Run ``main.py predict`` on the four cameras until it is enough, then send SIGTERM.

    Args:
        is_enough: is given the process and the folder of its files, ten times a second.
        folder: where it runs.
        pictures: what the cameras show.
        seconds: after which it must have been enough.
        threads: of the network.
        more: arguments.

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
            *more,
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
                process.wait(timeout=END_SECONDS)
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


HEADER = """# Four cameras in one process

Written by `python -m tests.four_cameras --seconds {seconds:g} --threads {threads}`, which serves four cameras over HTTP
(MJPEG, {fps} frames a second, Puppets of size `tiny`) and runs `python main.py predict` on them with
`results/weights/dsta.pt`; jsonl, mp4 and events with clips are written. One is well. One shows frames for {shows:g} s
and then holds the connection open without any. One sends noise, as pictures or without end. One is there for
{shows:g} s and away for {away:g} s. A frame every 125 ms is due (stride 2) and answered at once. Delay is from a
frame's arrival to its detections. An event is a person who does one of the ten actions with a score of 0.5 or more for
half a second, down to 0.3. The run is ended by SIGTERM.
"""
RULE = {"start_score": 0.5, "end_score": 0.3, "shortest_seconds": 0.5, "lost_seconds": 1.5}
KINDS = {"steady": "well", "stalling": "stalls", "leaving": "leaves and comes back", "garbage": "sends garbage"}


def broken_files(results: Path) -> list[str]:
    """Return the names of files that are not whole: a line without JSON, a video without frames, a part of a file."""
    broken = []
    for path in sorted(results.rglob("*")):
        if path.suffix == ".jsonl":
            try:
                [json.loads(line) for line in path.read_text().splitlines()]
            except json.JSONDecodeError:
                broken.append(path.name)
        elif path.suffix == ".mp4":
            if not len(list_video(path).times):
                broken.append(path.name)
        elif UNFINISHED in path.name:
            broken.append(path.name)
    return broken


def events_of(folder: Path) -> tuple[dict[str, int], int]:
    """Return how many events each camera has had, and how many lines tell of one that another line tells of."""
    path = folder / "events.jsonl"
    events = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    told = {(each["source"], each["rule"], each["track"], each["start"]) for each in events}
    counts = Counter(each["source"].partition("/")[0] for each in events)
    return {name: counts[name] for name in CAMERAS}, len(events) - len(told)


def page(status: int, results: Path, memory: list[tuple[float, float]], seconds: float, threads: int) -> str:
    """Return what was measured, and where; ``memory`` are seconds and MiB."""
    text = HEADER.format(seconds=seconds, threads=threads, fps=FPS, shows=SHOWS_SECONDS, away=AWAY_SECONDS)
    figures = ("frames", "dropped", "reconnections", "delay_p50_ms", "delay_p95_ms")
    lines, cells = health(results), []
    for name, kind in KINDS.items():
        last = lines[name][-1] if lines[name] else dict.fromkeys(figures)
        cells.append([kind, *("-" if last[figure] is None else f"{last[figure]:.0f}" for figure in figures)])
    head = ["camera", "frames", "due and dropped", "reconnections", "delay p50, ms", "delay p95, ms"]
    moments = sorted({min(moment, seconds) for moment in (10.0, 30.0, 60.0, seconds / 2, seconds)})
    near = [min(memory, key=lambda each, moment=moment: abs(each[0] - moment)) for moment in moments]
    held = ", ".join(f"{mib:.0f} MiB after {after:.0f} s" for after, mib in near)
    events, repeated = events_of(results.parent / "events")
    counts = ", ".join(f"{events[name]} of the one that {kind}" for name, kind in KINDS.items() if name != "steady")
    broken = broken_files(results) + broken_files(results.parent / "events")
    files = f"not whole: {', '.join(broken)}" if broken else "all files whole"
    machine = f"{device_name(torch.device('cpu'))}, {os.cpu_count()} cores, {threads} threads, float32"
    made = f"PyTorch {torch.__version__}, commit {commit(ROOT)}, {now()[:10]}; nothing is drawn at random"
    return (
        f"{text}\n{markdown_table(head, cells)}\n\nEvents: {events['steady']} of the camera that is well, {counts}; "
        f"{repeated} were reported twice.\n\nMemory of the process from the first prediction on: {held}. "
        f"Exit status {status}; {files}.\n\n{machine}, {made}. The load of the machine was {os.getloadavg()[0]:.1f}.\n"
    )


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0, help="how long to predict, from the first frame on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "pages" / "cameras.md")
    options = parser.parse_args(args)
    require_writable(options.out)
    memory: list[tuple[float, float]] = []
    began: list[float] = []
    bar = tqdm(total=options.seconds, unit="s", desc="starting", bar_format="{desc}: {bar}| {n:.0f}/{total:.0f} s")

    def is_enough(process: subprocess.Popen, results: Path) -> bool:
        if not began and (results / "steady.jsonl").is_file():
            began.append(time.monotonic())
            bar.set_description("predicting")
        if began:
            memory.append((time.monotonic() - began[0], resident_mib(process)))
            bar.n = min(memory[-1][0], options.seconds)
            bar.refresh()
        return bool(began) and memory[-1][0] > options.seconds

    with bar, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rules = [{"action": action} | RULE for action in Puppets(root=folder, size="tiny").class_names()]
        (folder / "rules.yaml").write_text(json.dumps({"rules": rules}))
        reporting = ("--trainer.callbacks+=EventReporter", "--trainer.callbacks.rules=rules.yaml")
        shown, limit = film(folder / "puppets"), options.seconds + START_SECONDS
        status, *_ = predict_until(is_enough, folder, shown, limit, options.threads, reporting)
        results = folder / "runs" / "predictions"
        text = page(status, results, memory, options.seconds, options.threads)
    write_whole(options.out, text)
    print(f"{text}\nwritten to {options.out}")


if __name__ == "__main__":
    main()
