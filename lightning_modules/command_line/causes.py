"""Causes of an exception, through the errors that jsonargparse wraps around it."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType


def causes(error: BaseException | None) -> Iterator[Exception]:
    """Yield an exception and what caused it, from the last raised to the first.

    Where a value fits none of several types, jsonargparse names the first type's error as the cause. The cause here is
    that of the type which went farthest, to a constructor if any did.
    """
    while isinstance(error, Exception):
        yield error
        tried = _tried_types(error)
        error = max(tried, key=_reach) if tried else error.__cause__


def unwrapped(error: Exception) -> Exception:
    """Return what a constructor raised, without the errors that the parser wraps around it."""
    for cause in causes(error):
        if not raised_by(cause).startswith("jsonargparse"):
            return cause
    return error


def raised_by(error: Exception) -> str:
    """Return the name of the module whose code raised an exception."""
    last = last_of(error)
    return "" if last is None else last.tb_frame.f_globals.get("__name__", "")


def last_of(error: Exception) -> TracebackType | None:
    """Return the innermost entry of a traceback, where the exception was raised."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last


def _reach(error: Exception) -> tuple[bool, int]:
    chain = list(causes(error))
    return not raised_by(chain[-1]).startswith("jsonargparse"), len(chain)


def _tried_types(error: Exception) -> list[Exception]:
    """The errors of the types of a union; they are nowhere but in the function that raises."""
    last = last_of(error)
    if last is None or last.tb_frame.f_code.co_name != "raise_union_unexpected_value":
        return []
    return [each for each in last.tb_frame.f_locals.get("exceptions", ()) if isinstance(each, Exception)]
