"""The server of the page: in a thread, on this machine alone unless a token guards it."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import secrets
import socket
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from callbacks.page.board import Board
from datamodules.errors import UserError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

SHORTEST_TOKEN = 8
LOOK_SECONDS = 0.02
"""Pause between two checks of a stream for a new picture."""
MOST_CONNECTIONS = 64
"""Connections at once, at most; further ones get 503. Those that ask for nothing are closed after some seconds."""
START_SECONDS = 10.0
HEADERS = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff"}
"""Browsers store nothing and pass on no address, which may hold the token."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def check_access(host: str, port: int, token: str | None) -> None:
    """Refuse what would show pictures to anybody.

    Raises:
        UserError: the host can be reached from other machines and there is no token; or a token that is easily guessed.
    """
    if not 0 <= port < 2**16:
        raise UserError(f"port must be from 0 to 65535, got {port}")
    if token is not None and len(token) < SHORTEST_TOKEN:
        raise UserError(f"token must have at least {SHORTEST_TOKEN} characters, got {len(token)}")
    if token is None and not _is_loopback(host):
        raise UserError(
            f"the page on {host} could be seen from other machines, so it needs a token",
            remedy=f"give a token of at least {SHORTEST_TOKEN} characters, or leave the host 127.0.0.1",
        )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class PageServer:
    """Server of a ``Board`` from ``start`` to ``stop``.

    ``/`` is the page and ``/state`` its content. ``/picture?source=`` is the newest picture, ``/stream?source=`` all of
    them as MJPEG, by default of the first source. ``/health`` is 200, or 503 while no frames come. With a token every
    request must carry it, as ``?token=`` or ``Authorization: Bearer``; any other gets 401 and nothing else.

    Args:
        board: what is shown.
        host, port: where; port 0 takes a free one.
        token: secret that requests must carry, see ``check_access``.
    """

    def __init__(self, board: Board, host: str, port: int, token: str | None) -> None:
        check_access(host, port, token)
        self.board, self.host, self.port, self.token = board, host, port, token

    @property
    def address(self) -> str:
        """Return the address of the page, without the token."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}/"

    def start(self) -> None:
        """Begin to serve.

        Raises:
            UserError: starlette or uvicorn is not installed, or nothing can be bound there.
        """
        try:
            import uvicorn

            from callbacks.page.connection import ImpatientProtocol

            app = guarded(page_app(self.board), self.token)
        except ModuleNotFoundError as error:
            raise UserError(f"{error.name} is not installed", "the page", "pip install 'onlooker[serve]'") from error
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        try:
            bound = socket.create_server((self.host, self.port), family=family)
        except OSError as error:
            raise UserError(
                f"cannot be bound: {error.strerror or error}", f"{self.host}:{self.port}", "choose another port"
            ) from error
        self.port = bound.getsockname()[1]
        config = uvicorn.Config(
            app,
            http=ImpatientProtocol,
            log_level="error",
            access_log=False,  # which would hold the token
            server_header=False,
            proxy_headers=False,
            lifespan="off",
            ws="none",
            limit_concurrency=MOST_CONNECTIONS,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([bound],), name="page", daemon=True)
        self._thread.start()
        until = time.monotonic() + START_SECONDS
        while not self._server.started and self._thread.is_alive() and time.monotonic() < until:
            time.sleep(0.01)

    def stop(self) -> None:
        """End all connections and serve no longer."""
        self.board.is_closed = True
        self._server.should_exit = True
        self._thread.join(5.0)


def page_app(board: Board) -> Any:
    """Return the ASGI application that shows a board."""
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
    from starlette.routing import Route

    html = Path(__file__).with_name("page.html").read_text(encoding="utf-8")

    def page(request: Request) -> Response:
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'self'; img-src 'self' data:; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
            "frame-ancestors 'none'"
        )
        return HTMLResponse(html.replace("NONCE", nonce), headers=HEADERS | {"Content-Security-Policy": policy})

    def state(request: Request) -> Response:
        return JSONResponse(board.state(), headers=HEADERS)

    def health(request: Request) -> Response:
        is_well, content = board.health()
        return JSONResponse(content, 200 if is_well else 503, headers=HEADERS)

    def picture(request: Request) -> Response:
        jpeg = board.picture(_source(request))
        return Response(status_code=404) if jpeg is None else Response(jpeg, headers=HEADERS, media_type="image/jpeg")

    async def stream(request: Request) -> Response:
        source = _source(request)
        if board.number(source) is None:
            return Response(status_code=404)
        return StreamingResponse(parts(source), headers=HEADERS, media_type="multipart/x-mixed-replace; boundary=frame")

    def _source(request: Request) -> str:
        return request.query_params.get("source") or next(iter(board.names), "")

    async def parts(source: str) -> AsyncIterator[bytes]:
        shown: int | None = None
        while not board.is_closed:
            number = board.number(source)
            if number is None or number == shown:
                await asyncio.sleep(LOOK_SECONDS)
                continue
            shown = number
            jpeg = await run_in_threadpool(board.picture, source)
            if jpeg is not None:
                head = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(jpeg)
                yield head + jpeg + b"\r\n"

    routes = {"/": page, "/state": state, "/health": health, "/picture": picture, "/stream": stream}
    return Starlette(routes=[Route(path, endpoint) for path, endpoint in routes.items()])


def guarded(app: Any, token: str | None) -> Any:
    """Return an ASGI application that answers only those who know the token.

    Without one it serves only requests that name this machine as their host. Otherwise a page of another site, whose
    name leads here, could read the responses.
    """
    from starlette.responses import Response

    async def guard(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            headers = dict(scope["headers"])
            if token is not None and not _has_token(scope["query_string"], headers, token):
                await Response(status_code=401)(scope, receive, send)
                return
            if token is None and _hostname(headers.get(b"host", b"")) not in LOOPBACK:
                await Response(status_code=403)(scope, receive, send)
                return
        await app(scope, receive, send)

    return guard


def _has_token(query: bytes, headers: dict[bytes, bytes], token: str) -> bool:
    scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() != b"bearer":
        given = parse_qs(query.decode("latin-1"), encoding="latin-1").get("token", [""])[0].encode("latin-1")
    return hmac.compare_digest(given, token.encode())


def _hostname(host: bytes) -> str | None:
    try:
        return urlsplit(f"//{host.decode('latin-1')}").hostname
    except ValueError:
        return None
