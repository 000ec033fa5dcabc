"""Passwords and tokens, which configs and command lines should not hold."""

from __future__ import annotations

import os

from datamodules.errors import UserError


def secret(text: str, where: str) -> str:
    """Return a secret: the text itself, or of ``$NAME`` the environment variable's value.

    Raises:
        UserError: the variable is not set, or the secret could not stand in a header of HTTP.
    """
    value = text
    if text.startswith("$"):
        value = os.environ.get(text[1:], "")
        if not value:
            raise UserError(f"the environment variable {text[1:]} is not set", where, f"export {text[1:]}=...")
    if not (value.isascii() and value.isprintable()):
        raise UserError("holds characters other than printable ASCII", where)
    return value
