"""The page's server: what it gives, to whom, and that nobody else gets anything."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from callbacks.page import connection
from callbacks.page.board import Board
from callbacks.page.server import MOST_CONNECTIONS, PageServer, check_access
from datamodules.errors import UserError
from tests.callbacks.events.scenes import frame, person

TOKEN = "long-enough-token"
PATHS = ("/", "/state", "/health", "/picture", "/stream", "/picture?source=cam", "/nothing", "/../../etc/passwd")


def serve(token: str | None) -> tuple[PageServer, Board]:
    board = Board(0.5, 0.2)
    board.show(frame(0.0, person(0.9), colour=60))
    server = PageServer(board, "127.0.0.1", 0, token)
    server.start()
    return server, board


@pytest.fixture(scope="module")
def open_page() -> Iterator[tuple[PageServer, Board]]:
    server, board = serve(None)
    yield server, board
    server.stop()


@pytest.fixture(scope="module")
def guarded_page() -> Iterator[tuple[PageServer, Board]]:
    server, board = serve(TOKEN)
    yield server, board
    server.stop()


def get(server: PageServer, path: str, method: str = "GET", **headers: str) -> tuple[int, dict, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request(method, path, headers=headers)
        reply = connection.getresponse()
        body = reply.read(200) if path.startswith("/stream") and reply.status == 200 else reply.read()
        return reply.status, dict(reply.getheaders()), body
    finally:
        connection.close()


def test_what_is_served(open_page):
    server, _ = open_page
    status, headers, body = get(server, "/")
    assert status == 200 and b"<title>Onlooker</title>" in body and b"NONCE" not in body
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    status, headers, body = get(server, "/picture?source=cam")
    assert status == 200 and headers["content-type"] == "image/jpeg" and body[:2] == b"\xff\xd8"
    assert headers["cache-control"] == "no-store" and headers["referrer-policy"] == "no-referrer"
    status, _, body = get(server, "/state")
    assert status == 200 and json.loads(body)["sources"][0]["name"] == "cam"
    assert get(server, "/picture")[0] == 200  # the first source
    assert [get(server, path)[0] for path in ("/picture?source=x", "/stream?source=x", "/nothing")] == [404] * 3
    assert get(server, "/", method="POST")[0] == 405


def test_health_is_json_with_a_status(open_page):
    server, _ = open_page
    status, _, body = get(server, "/health")
    content = json.loads(body)
    assert status == 200 and content["status"] == "ok" and content["sources"][0]["frames"] >= 1
    empty = PageServer(Board(0.5, 0.2), "127.0.0.1", 0, None)
    empty.start()
    status, _, body = get(empty, "/health")
    empty.stop()
    assert status == 503 and json.loads(body)["status"] == "starting"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("query", "headers"),
    [
        ("", {}),
        ("token=", {}),
        ("token=wrong", {}),
        (f"token={TOKEN[:-1]}", {}),
        (f"token={TOKEN}x", {}),
        (f"Token={TOKEN}", {}),
        ("token=%FF%00", {}),
        ("", {"Authorization": "Bearer wrong"}),
        ("", {"Authorization": f"Basic {TOKEN}"}),
        (f"token={TOKEN}", {"Authorization": "Bearer wrong"}),
    ],
)
def test_a_wrong_token_gets_401_and_nothing_else(guarded_page, path, query, headers):
    full = f"{path}{'&' if '?' in path else '?'}{query}"
    status, given, body = get(guarded_page[0], full, **headers)
    assert (status, body) == (401, b"") and set(given) <= {"date", "content-length"}


@pytest.mark.parametrize("path", ["/", "/state", "/health", "/picture", "/stream"])
def test_the_right_token_opens_every_address_in_both_ways(guarded_page, path):
    server, _ = guarded_page
    assert get(server, f"{path}?token={TOKEN}")[0] == 200
    assert get(server, path, Authorization=f"Bearer {TOKEN}")[0] == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1:1", 200), ("localhost:8000", 200), ("[::1]:80", 200), ("evil.example", 403), ("127.0.0.1.evil", 403)],
)
def test_without_a_token_a_name_that_leads_here_from_elsewhere_gets_nothing(open_page, host, status):
    answer = get(open_page[0], "/state", Host=host)
    assert answer[0] == status and (status == 200 or answer[2] == b"")


def test_a_stream_is_mjpeg_of_the_newest_pictures_and_skips_what_a_slow_reader_missed(open_page):
    server, board = open_page
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", "/stream?source=cam")
    reply = connection.getresponse()
    assert reply.getheader("content-type") == "multipart/x-mixed-replace; boundary=frame"

    def part() -> bytes:
        assert reply.readline() == b"--frame\r\n" and reply.readline() == b"Content-Type: image/jpeg\r\n"
        length = int(reply.readline().split(b":")[1])
        assert reply.readline() == b"\r\n"
        jpeg = reply.read(length)
        assert reply.readline() == b"\r\n"
        return jpeg

    first = part()
    for number in range(20):
        board.show(frame(float(number), colour=100 + 5 * number))
    newest = board.picture("cam")
    seen = [part()]
    while seen[-1] != newest:
        seen.append(part())
    assert len(seen) < 20 and first != newest
    connection.close()


def test_readers_who_stop_reading_hold_up_nobody(open_page):
    server, board = open_page
    lazy = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(5)]
    for each in lazy:
        each.sendall(b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
    began = time.monotonic()
    for number in range(200):
        board.show(frame(float(number), colour=number))
    assert time.monotonic() - began < 1.0
    assert get(server, "/state")[0] == 200
    for each in lazy:
        each.close()


@pytest.mark.parametrize(
    "said",
    [b"", b"GET /state HTTP/1.1\r\nHost: ", b"GET /state HTTP/1.1\r\nHost: localhost\r\n\r\nGET /state HT"],
    ids=["nothing", "half a request", "half a second request"],
)
def test_connections_that_ask_for_nothing_keep_others_out_for_some_seconds_only(monkeypatch, guarded_page, said):
    server, _ = guarded_page
    monkeypatch.setattr(connection, "SILENT_SECONDS", 0.5)
    silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(MOST_CONNECTIONS)]
    for each in silent:
        each.sendall(said)
    until = time.monotonic() + 10
    while get(server, f"/state?token={TOKEN}")[0] != 200:
        assert time.monotonic() < until
        time.sleep(0.1)
    time.sleep(1.0)
    assert all(each.recv(1000) == b"" or each.recv(1000) == b"" for each in silent)  # after the response, if any
    for each in silent:
        each.close()


def test_a_stream_goes_on_for_longer_than_silence_is_borne(monkeypatch, open_page):
    server, board = open_page
    monkeypatch.setattr(connection, "SILENT_SECONDS", 0.2)
    with socket.create_connection(("127.0.0.1", server.port), 10) as reader:
        reader.sendall(b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert reader.recv(65536)
        time.sleep(0.6)
        board.show(frame(99.0, colour=200))
        assert reader.recv(65536)


def test_the_end_closes_streams_and_frees_the_port():
    server, _ = serve(None)
    ended = threading.Event()

    def read() -> None:
        with socket.create_connection(("127.0.0.1", server.port)) as reader:
            reader.sendall(b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
            while reader.recv(65536):
                pass
        ended.set()

    threading.Thread(target=read, daemon=True).start()
    time.sleep(0.2)
    server.stop()
    assert ended.wait(5) and not server._thread.is_alive()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", server.port), 1)


def test_a_port_that_is_taken_is_told(open_page):
    taken = open_page[0].port
    with pytest.raises(UserError, match=rf"127.0.0.1:{taken}: cannot be bound: .*; choose another port"):
        PageServer(Board(0.5, 0.2), "127.0.0.1", taken, None).start()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "camera.example", ""])
def test_a_page_for_others_needs_a_token(host):
    with pytest.raises(UserError, match="could be seen from other machines, so it needs a token"):
        check_access(host, 8000, None)
    check_access(host, 8000, TOKEN)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "::1"])
def test_a_page_for_this_machine_needs_none(host):
    check_access(host, 8000, None)


@pytest.mark.parametrize("token", ["", "short"])
def test_a_token_that_is_easily_guessed_is_refused(token):
    with pytest.raises(UserError, match="at least 8 characters"):
        check_access("127.0.0.1", 8000, token)
