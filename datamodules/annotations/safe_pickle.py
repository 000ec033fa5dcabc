"""Annotation pickles, read without running what is in them.

An ordinary ``pickle.load`` calls whatever the file names, so that opening a downloaded annotation can do anything.
Allowing numpy's own functions is not safe either: they believe what a file says of a dtype, and one that says "object"
of plain bytes makes numpy follow them as pointers. So nothing that a file says reaches numpy unchecked. The interpreter
is the standard library's in Python, for the one in C allocates whatever it is told to.
"""

from __future__ import annotations

import collections
import io
import math
import pickle
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from datamodules.errors import UserError, printable

ARRAY_MODULES = ("numpy.core.", "numpy._core.")
"""Where numpy 1 and numpy 2 keep the functions that build an array; each can read what the other wrote."""
CONTAINERS = {kind.__name__: kind for kind in (dict, list, tuple, set, frozenset)}
PLAIN_DTYPE = re.compile(r"b1|[iu][1248]|f(2|4|8|16)|c(8|16|32)|[SU]\d{1,9}|O8?")
"""Numbers, bytes, text, and lists of objects, which are read one by one."""
PLAIN_KEY = (str, bytes, int, float, type(None), np.generic)
LARGEST_CHARACTER = 0x10FFFF
MOST_DIMENSIONS = 32
DEEPEST = 64
"""Containers within containers; annotations have up to five."""
SPARE = 2**20
"""Bytes, and objects, that a file may ask for beyond its own length."""
EXPANSION = 8
"""Objects for each byte of a file, where it names a container several times."""
LONGEST_REASON = 200
SAVE_PLAINLY = "a pickle that names other things can run any code; write its contents as arrays, lists and dicts"


def load_pickle(path: str | Path) -> Any:
    """Return what a pickle of numpy arrays, numbers, text and plain containers holds; anything else is refused.

    Pickles of Python 2 are read as Latin-1, which keeps every byte of their arrays. Time and memory are bounded by the
    length of the file.

    Raises:
        UserError: there is no such file, it names something that is not allowed, or it is not a whole pickle.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError("no such annotation file", path)
    try:
        contents = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}", path) from error
    try:
        found = _ArrayUnpickler(contents).load()
        _check_nesting(found, EXPANSION * len(contents) + SPARE)
    except _Refused as error:
        wanted = printable(str(error))[:LONGEST_REASON]
        raise UserError(
            f"refused: it asks for {wanted}, and only numpy arrays and plain containers are read", path, SAVE_PLAINLY
        ) from None
    except Exception as error:  # a damaged pickle is a damaged program, which fails in any way at all
        reason = printable(f"{type(error).__name__}: {error}")[:LONGEST_REASON]
        raise UserError(f"is not a readable pickle ({reason})", path) from error
    return found


class _Refused(Exception):
    """Name of what a pickle may not have."""


_ARRAY = object()
"""Stands for the class of arrays, which a file may name and not call."""


class _ArrayUnpickler(pickle._Unpickler):
    """Unpickler whose instructions build nothing but sound arrays and plain containers.

    An index of 2**31 would make the one in C fill 32 GB.
    """

    dispatch: ClassVar[dict[int, Callable]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, contents: bytes) -> None:
        super().__init__(io.BytesIO(contents), encoding="latin1")
        self.length = len(contents)
        self.left = len(contents) + SPARE
        """What may still be copied."""
        self.unfinished: dict[int, np.ndarray | np.dtype] = {}
        """Arrays and dtypes that wait for their state, by identity."""

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if module in ("builtins", "__builtin__"):
            if name in CONTAINERS:
                return self._container(CONTAINERS[name])
            if name in ("bytearray", "complex"):
                return {"bytearray": self._bytearray, "complex": _complex}[name]
        array_function = module.startswith(ARRAY_MODULES) and (module.partition("core.")[2], name)
        functions = {
            "collections.OrderedDict": self._container(collections.OrderedDict),
            "collections.defaultdict": self._defaultdict,
            "_codecs.encode": self._encode,
            "numpy.ndarray": _ARRAY,
            "numpy.dtype": self._dtype,
            ("multiarray", "_reconstruct"): self._empty_array,
            ("multiarray", "scalar"): self._scalar,
            ("numeric", "_frombuffer"): self._from_buffer,
        }
        for known in (full, array_function):
            if known in functions:
                return functions[known]
        raise _Refused(full)

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused(f"the outside object {pid!r}" if isinstance(pid, str) else "an outside object")

    def get_extension(self, code: int) -> None:
        raise _Refused(f"the extension {code}")

    def _spend(self, amount: int) -> None:
        """Count what a file has copied: bytes of arrays, and entries of containers."""
        self.left -= amount
        if self.left < 0:
            raise _Refused("copies that take more memory than the file")

    # What a file may call.

    def _container(self, kind: type) -> Any:
        def make(entries: Any = ()) -> Any:
            if type(entries) not in (tuple, list, dict, set, frozenset):
                raise _Refused(f"a {kind.__name__} of a {type(entries).__name__}")
            self._spend(len(entries))
            if kind in (set, frozenset):
                _check_keys(entries)
            elif issubclass(kind, dict):
                pairs = list(entries.items() if isinstance(entries, dict) else entries)
                _check_keys(key for key, _ in pairs)
                return kind(pairs)
            return kind(entries)

        make.kind = kind
        return make

    def _defaultdict(self, factory: Any = None) -> collections.defaultdict:
        return collections.defaultdict(getattr(factory, "kind", None))

    def _bytearray(self, data: bytes | str = b"", encoding: str = "latin1") -> bytearray:
        data = _bytes(data if encoding in ("latin1", "latin-1") else None, "a bytearray")
        self._spend(len(data))
        return bytearray(data)

    def _encode(self, text: str, encoding: str) -> bytes:
        """How Python 3 writes bytes in the protocols of Python 2. Other encodings would be looked up by importing."""
        if encoding != "latin1":
            raise _Refused(f"the encoding {encoding!r}" if isinstance(encoding, str) else "an encoding")
        self._spend(len(text))
        return _bytes(text, "an encoding")

    def _dtype(self, name: str, align: int = 0, copy: int = 1) -> np.dtype:
        if not isinstance(name, str) or not PLAIN_DTYPE.fullmatch(name) or (align, copy) != (0, 1):
            raise _Refused(f"the numpy type {name!r}" if isinstance(name, str) else "an unnamed numpy type")
        # A copy of its own, for its byte order comes later.
        dtype = np.dtype(name, align=False, copy=True)
        self.unfinished[id(dtype)] = dtype
        return dtype

    def _empty_array(self, kind: Any, shape: Any, code: Any) -> np.ndarray:
        if kind is not _ARRAY or shape != (0,) or code not in ("b", b"b"):
            raise _Refused("an array that is not built as numpy does")
        array = np.empty(0, np.int8)
        self.unfinished[id(array)] = array
        return array

    def _scalar(self, dtype: Any, data: Any = b"") -> np.generic:
        dtype = _plain(dtype, "a number")
        data = _bytes(data, "a number")
        if dtype.itemsize == 0:  # text without a character
            return dtype.type()
        return self._array(data, dtype, ())[()]

    def _from_buffer(self, buffer: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> np.ndarray:
        if type(buffer) not in (bytes, bytearray) or order not in ("C", "F", "K"):
            raise _Refused("an array of a buffer that is not its own")
        array = self._array(buffer, _plain(dtype, "an array"), shape)
        if order == "F":
            return array.reshape(shape, order="F")
        if order == "K" and axes is not None:
            if type(axes) is not tuple or not all(type(axis) is int for axis in axes):
                raise _Refused("an array of unknown axes")
            return array.transpose(axes)
        return array

    def _array(self, data: bytes | bytearray, dtype: np.dtype, shape: Any) -> np.ndarray:
        """Return an array of raw values, once its shape and its values are known to be sound."""
        count = self._count(shape, dtype)
        if count * dtype.itemsize != len(data):
            raise _Refused(f"{count} values of {dtype} from {len(data)} bytes")
        self._spend(len(data))
        _check_values(data, dtype)
        return np.frombuffer(data, dtype).reshape(shape) if len(data) else np.empty(shape, dtype)

    def _count(self, shape: Any, dtype: np.dtype) -> int:
        """Return how many values a shape has; a dimension beside an empty one is not believed any more than others."""
        if type(shape) is not tuple or len(shape) > MOST_DIMENSIONS:
            raise _Refused("an array without a plain shape")
        if not all(type(length) is int and length >= 0 for length in shape) or dtype.itemsize == 0:
            raise _Refused(f"an array without a plain shape of {dtype}")
        if math.prod(max(length, 1) for length in shape) > self.length + SPARE:
            raise _Refused("an array larger than the file")
        return math.prod(shape)

    # Instructions that would do as the file says.

    def load_build(self) -> None:
        """Give an array or a dtype its state; nothing else that is read has one."""
        state = self.stack.pop()
        target = self.stack[-1]
        if self.unfinished.pop(id(target), None) is not target:
            raise _Refused(f"a state of a {type(target).__name__}")
        if isinstance(target, np.dtype):
            self._set_byte_order(target, state)
        else:
            self._fill(target, state)

    dispatch[pickle.BUILD[0]] = load_build

    def _set_byte_order(self, dtype: np.dtype, state: Any) -> None:
        order = state[1] if type(state) is tuple and len(state) == 8 else None
        if order not in ("<", ">", "|") or state != dtype.newbyteorder(order).__reduce__()[2]:
            raise _Refused(f"a numpy type {dtype} with the state of another")
        dtype.__setstate__(state)

    def _fill(self, array: np.ndarray, state: Any) -> None:
        if type(state) is not tuple or len(state) != 5:
            raise _Refused("an array without a state")
        version, shape, dtype, is_fortran, data = state
        dtype = _plain(dtype, "an array", of_objects=True)
        if version != 1 or is_fortran not in (0, 1):
            raise _Refused("an array of another version")
        if dtype.hasobject:
            if type(data) is not list or len(data) != self._count(shape, dtype):
                raise _Refused("an array of objects that are not listed")
            self._spend(len(data))
        else:
            data = _bytes(data, "an array")
            self._array(data, dtype, shape)
        array.__setstate__((1, shape, dtype, bool(is_fortran), data))

    def load_bytearray8(self) -> None:
        """As its original, which takes the memory before it knows whether there are so many bytes."""
        size = int.from_bytes(self.read(8), "little")
        if size > self.length:
            raise pickle.UnpicklingError("a bytearray longer than the file")
        self.append(bytearray(self.read(size)))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


def _with_checked_keys(opcode: bytes, keys: slice) -> Callable[[_ArrayUnpickler], None]:
    """Have an instruction look at what becomes a key before it is hashed."""
    original = pickle._Unpickler.dispatch[opcode[0]]

    def load(unpickler: _ArrayUnpickler) -> None:
        _check_keys(unpickler.stack[keys])
        original(unpickler)

    return load


_ArrayUnpickler.dispatch |= {
    opcode[0]: _with_checked_keys(opcode, keys)
    for opcode, keys in {
        pickle.SETITEM: slice(-2, -1),
        pickle.SETITEMS: slice(None, None, 2),
        pickle.DICT: slice(None, None, 2),
        pickle.ADDITEMS: slice(None),
        pickle.FROZENSET: slice(None),
    }.items()
}


def _check_keys(keys: Iterable[Any]) -> None:
    """Refuse keys and members of sets that are not flat: the hash of a deeply nested tuple overflows the stack."""
    for key in keys:
        for part in key if type(key) is tuple else (key,):
            if not isinstance(part, PLAIN_KEY):
                raise _Refused(f"a key that is a {type(part).__name__}")


def _complex(real: float, imag: float) -> complex:
    if not (isinstance(real, float) and isinstance(imag, float)):
        raise _Refused("a complex number of other things")
    return complex(real, imag)


def _bytes(data: Any, what: str) -> bytes:
    """Return raw bytes, which Python 2 writes as text."""
    if type(data) not in (bytes, str):
        raise _Refused(f"{what} of a {type(data).__name__}")
    return data.encode("latin1") if isinstance(data, str) else data


def _plain(dtype: Any, what: str, of_objects: bool = False) -> np.dtype:
    if not isinstance(dtype, np.dtype) or (dtype.hasobject and not of_objects):
        raise _Refused(f"{what} of {dtype if isinstance(dtype, np.dtype) else 'no numpy type'}")
    return dtype


def _check_values(data: bytes | bytearray, dtype: np.dtype) -> None:
    """Refuse raw values that numpy takes for granted: truth values are 0 or 1, characters exist."""
    if dtype.kind == "b" and np.frombuffer(data, np.uint8).max(initial=0) > 1:
        raise _Refused("truth values that are neither 0 nor 1")
    if dtype.kind == "U":
        characters = np.frombuffer(data, np.dtype(np.uint32).newbyteorder(dtype.byteorder))
        if characters.max(initial=0) > LARGEST_CHARACTER:
            raise _Refused("text of characters that do not exist")


class _Level:
    """A container that is being counted."""

    def __init__(self, container: Any) -> None:
        self.container = container
        entries = container.values() if isinstance(container, dict) else container
        self.entries: Iterator[Any] = iter(entries.flat if isinstance(entries, np.ndarray) else entries)
        self.size, self.height = 1, 1


def _holds_objects(entry: Any) -> bool:
    if isinstance(entry, np.ndarray):
        return entry.dtype.hasobject
    return isinstance(entry, dict | list | tuple | set | frozenset)


def _check_nesting(root: Any, most_objects: int) -> None:
    """Refuse what is nested too deeply, holds itself, or names containers so often that nobody can walk through it."""
    known: dict[int, tuple[int, int]] = {}  # how many objects each container stands for, and how deep it is
    end = object()
    path = [_Level([root])]
    while path:
        level = path[-1]
        entry = next(level.entries, end)
        if entry is end:
            size, height = known[id(level.container)] = level.size, level.height
            path.pop()
        elif _holds_objects(entry):
            if id(entry) not in known:
                if len(path) > DEEPEST:
                    raise _Refused(f"containers more than {DEEPEST} deep")
                path.append(_Level(entry))
                continue
            size, height = known[id(entry)]
        else:
            size, height = 1, 0
        if path:
            above = path[-1]
            above.size, above.height = above.size + size, max(above.height, height + 1)
            if above.size > most_objects or len(path) + above.height > DEEPEST + 1:
                raise _Refused(f"containers more than {DEEPEST} deep, or too many of them")
