"""Events to a web address."""

from __future__ import annotations

import json
from collections.abc import Mapping
from email.message import Message as Headers
from http.client import HTTPException
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from callbacks.events.sinks import Delivery, EventSink, Message, NotNow, Refused
from callbacks.secret import secret
from datamodules.errors import UserError

PASSING = (408, 425, 429)
"""Answers below 500 after which it is worth to try again: too slow, too early, too many."""
TOKEN = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz")
"""Characters of a header's name."""


class WebhookSink(EventSink):
    """Post every event as JSON to an address; any status 2xx confirms it.

    What cannot be delivered now (no connection, 408, 425, 429, 5xx) is sent again after growing pauses. Every other
    response refuses the event; so do redirections, which would turn the post into a get. An event may arrive twice
    where a reply was lost: its ``event`` id tells.

    Args:
        address: ``http://`` or ``https://``; keys in its query are not repeated in messages.
        headers: headers of the request. A value ``$NAME`` is taken from the environment, for passwords.
        timeout_seconds: longest duration of one attempt.
        delivery: see ``Delivery``.
    """

    def __init__(
        self,
        address: str,
        headers: dict[str, str] | None = None,
        timeout_seconds: float = 10.0,
        delivery: Delivery = Delivery(),
    ) -> None:
        self.address, self.timeout_seconds = address, timeout_seconds
        super().__init__(f"webhook {_without_secrets(address)}", delivery)
        self.headers = {"Content-Type": "application/json", "User-Agent": "onlooker"}
        for name, value in (headers or {}).items():
            if not name or not set(name.lower()) <= TOKEN:
                raise UserError(f"{name!r} is no name of a header", "headers")
            self.headers[name] = secret(value, f"headers.{name}")
        if timeout_seconds <= 0:
            raise UserError(f"timeout_seconds must be above 0, got {timeout_seconds}")

    def deliver(self, message: Message) -> None:
        request = Request(self.address, json.dumps(message).encode(), self.headers, method="POST")
        try:
            with build_opener(_NoRedirects).open(request, timeout=self.timeout_seconds) as reply:
                reply.read(1)
        except HTTPError as error:
            error.close()
            said = f"the answer was {error.code} {error.reason}"
            raise (NotNow if error.code in PASSING or error.code >= 500 else Refused)(said) from error
        except URLError as error:
            raise NotNow(f"cannot be reached ({error.reason})") from error
        except (OSError, HTTPException) as error:
            raise NotNow(f"the connection was lost ({error})") from error


def _without_secrets(address: str) -> str:
    """Return scheme, host and path of an address.

    Raises:
        UserError: it is none that can be posted to.
    """
    try:
        parts = urlsplit(address)
        port = f":{parts.port}" if parts.port else ""
    except ValueError as error:
        raise UserError(f"is no address: {error}", "address") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError("must begin with http:// or https:// and name a host", "address")
    if not address.isascii() or not address.isprintable() or " " in address:
        raise UserError("holds characters that must be written with %", "address")
    if parts.username or parts.password:
        raise UserError("holds a user", "address", "give headers with Authorization: Basic ...")
    return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"


class _NoRedirects(HTTPRedirectHandler):
    """Turn a redirection into an error."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Headers | Mapping[str, str], newurl: str
    ) -> None:
        return None
