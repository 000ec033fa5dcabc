"""Arrays as numpy pickles them, rebuilt without trusting what the file claims about them.

A dtype that claims to be of objects makes numpy follow eight bytes of a file as a pointer. A truth value of 255, or a
shape that does not fit its data, can end in memory that is not the array's. So dtypes are numbers, bytes, text or
objects, and their state must be the one that numpy writes for them. Data are compared with shapes before numpy sees
them.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

PLAIN_DTYPE = re.compile(r"b1|[iu][1248]|f(2|4|8|16)|c(8|16|32)|[SU]\d{1,9}|O8?")
"""Numbers, bytes, text, and lists of objects, which are read one by one."""
LARGEST_CHARACTER = 0x10FFFF
MOST_DIMENSIONS = 32
SPARE = 2**20
"""Bytes that a file may ask for beyond its own length."""


class Refused(Exception):
    """Name of what a pickle may not ask for."""


class Forged(Exception):
    """Impossible statement in a pickle."""


ARRAY_CLASS = object()
"""Stands for the class of arrays, which a file may name and not call."""


class PickledArrays:
    """Replacement of numpy's functions for a pickle, as far as the file is long enough for it.

    Args:
        length: of the file in bytes.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self.left = length + SPARE
        """Number of bytes that may still be copied."""
        self.unfinished: dict[int, np.ndarray | np.dtype] = {}
        """Arrays and dtypes that wait for their state, by identity."""

    def spend(self, amount: int) -> None:
        """Count what a file has copied: bytes of arrays, and entries of containers."""
        self.left -= amount
        if self.left < 0:
            raise Forged("copies that take more memory than the file")

    # Replacements for numpy's functions.

    def dtype(self, name: str, align: int = 0, copy: int = 1) -> np.dtype:
        """Replacement for ``numpy.dtype``; the byte order comes later, by ``set_state``."""
        if not isinstance(name, str) or not PLAIN_DTYPE.fullmatch(name) or (align, copy) != (0, 1):
            raise Refused(f"the numpy type {name!r}" if isinstance(name, str) else "an unnamed numpy type")
        dtype = np.dtype(name, align=False, copy=True)
        self.unfinished[id(dtype)] = dtype
        return dtype

    def empty(self, kind: object, shape: object, code: object) -> np.ndarray:
        """Replacement for ``_reconstruct``; all but the class comes later, by ``set_state``."""
        if kind is not ARRAY_CLASS or shape != (0,) or code not in ("b", b"b"):
            raise Forged("an array that is not built as numpy does")
        array = np.empty(0, np.int8)
        self.unfinished[id(array)] = array
        return array

    def scalar(self, dtype: object, data: object) -> np.generic:
        """Replacement for ``scalar``."""
        dtype = _plain(dtype)
        data = raw_bytes(data)
        if dtype.itemsize == 0 and not data:  # text without a character
            return dtype.type()
        return self._array(data, dtype, ())[()]

    def from_buffer(
        self, buffer: object, dtype: object, shape: object, order: object, axes: object = None
    ) -> np.ndarray:
        """Replacement for ``_frombuffer``."""
        if type(buffer) not in (bytes, bytearray) or order not in ("C", "F", "K"):
            raise Forged("an array of a buffer that is not its own")
        # A copy of what could be changed afterwards.
        buffer = bytearray(buffer) if isinstance(buffer, bytearray) else buffer
        array = self._array(buffer, _plain(dtype), shape)
        if order == "F":
            return array.reshape(-1).reshape(shape, order="F")
        if order == "K" and axes is not None:
            if type(axes) is not tuple or not all(type(axis) is int for axis in axes):
                raise Forged("an array of unknown axes")
            return array.transpose(axes)
        return array

    def set_state(self, target: object, state: object) -> None:
        """Replacement for ``__setstate__``, once per array and dtype; nothing else that is read has a state."""
        if self.unfinished.pop(id(target), None) is not target:
            raise Forged(f"a state for the type {type(target).__name__}")
        if isinstance(target, np.dtype):
            order = state[1] if type(state) is tuple and len(state) == 8 else None
            if order not in ("<", ">", "|") or state != target.newbyteorder(order).__reduce__()[2]:
                raise Forged(f"a numpy type {target} with the state of another")
            target.__setstate__(state)
        else:
            self._fill(target, state)

    def _fill(self, array: np.ndarray, state: object) -> None:
        if type(state) is not tuple or len(state) != 5:
            raise Forged("an array without a state")
        version, shape, dtype, is_fortran, data = state
        if version != 1 or is_fortran not in (0, 1):
            raise Forged("an array of another version")
        if isinstance(dtype, np.dtype) and dtype.hasobject:
            if type(data) is not list or len(data) != self._count(shape, dtype):
                raise Forged("an array of objects that are not listed")
            self.spend(len(data))
        else:
            data = raw_bytes(data)
            self._array(data, _plain(dtype), shape)
        array.__setstate__((1, shape, dtype, bool(is_fortran), data))

    def _array(self, data: bytes | bytearray, dtype: np.dtype, shape: object) -> np.ndarray:
        """Return raw values as an array, once its shape and its values are known to be sound."""
        count = self._count(shape, dtype)
        if count * dtype.itemsize != len(data):
            raise Forged(f"{count} values of {dtype} from {len(data)} bytes")
        self.spend(len(data))
        _check_values(data, dtype)
        return np.frombuffer(data, dtype).reshape(shape) if len(data) else np.empty(shape, dtype)

    def _count(self, shape: object, dtype: np.dtype) -> int:
        """Return how many values a shape has; a dimension beside an empty one is not believed any more than others."""
        if type(shape) is not tuple or len(shape) > MOST_DIMENSIONS or dtype.itemsize == 0:
            raise Forged(f"an array of {dtype} without a shape")
        if not all(type(length) is int and length >= 0 for length in shape):
            raise Forged(f"an array of {dtype} without a shape")
        if math.prod(max(length, 1) for length in shape) > self.length + SPARE:
            raise Forged("an array larger than the file")
        return math.prod(shape)


def raw_bytes(data: object) -> bytes:
    """Return raw bytes, which Python 2 writes as text."""
    if type(data) not in (bytes, str):
        raise Forged(f"bytes of the type {type(data).__name__}")
    return data.encode("latin1") if isinstance(data, str) else data


def _plain(dtype: Any) -> np.dtype:
    """Return a dtype whose values are their bytes."""
    if not isinstance(dtype, np.dtype) or dtype.hasobject:
        raise Forged("objects that are bytes" if isinstance(dtype, np.dtype) else "values of no numpy type")
    return dtype


def _check_values(data: bytes | bytearray, dtype: np.dtype) -> None:
    """Refuse raw values that numpy takes for granted: truth values are 0 or 1, characters exist."""
    if dtype.kind == "b" and np.frombuffer(data, np.uint8).max(initial=0) > 1:
        raise Forged("truth values that are neither 0 nor 1")
    if dtype.kind == "U":
        characters = np.frombuffer(data, np.dtype(np.uint32).newbyteorder(dtype.byteorder))
        if characters.max(initial=0) > LARGEST_CHARACTER:
            raise Forged("text of characters that do not exist")
