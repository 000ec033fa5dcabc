"""Connections of the page that must ask for something soon: else anybody could hold all of them by saying nothing."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

SILENT_SECONDS = 5.0
"""Longest time without a whole request, after the connection was made and after each response."""


class ImpatientProtocol(H11Protocol):
    """uvicorn's HTTP, which waits for ever for a first request and for the rest of one that has begun."""

    _end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._end is not None:
            self._end.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._await_request()

    def _await_request(self) -> None:
        if self._end is not None:
            self._end.cancel()
        self._end = self.loop.call_later(SILENT_SECONDS, self._close_if_silent)

    def _close_if_silent(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
