"""Annotation pickles, read without running what is in them.

An ordinary ``pickle.load`` calls any function that the file names, so that opening a downloaded annotation can do
anything. Allowing numpy's own functions is not safe either (``pickled_arrays``). The interpreter is the standard
library's in Python, whose instructions can be replaced: the one in C allocates any size that a file asks for.
"""

from __future__ import annotations

import collections
import io
import pickle
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from datamodules.annotations.pickles.arrays import ARRAY_CLASS, Forged, PickledArrays, Refused, raw_bytes
from datamodules.errors import UserError, printable

ARRAY_MODULES = ("numpy.core.", "numpy._core.")
"""Modules in which numpy 1 and numpy 2 keep the functions that build an array; each reads the other's files."""
CONTAINERS = {kind.__name__: kind for kind in (dict, list, tuple, set, frozenset)}
PLAIN_KEY = (str, bytes, int, float, type(None), np.generic)
DEEPEST = 64
"""Containers within containers; annotations have up to five."""
EXPANSION, SMALL = 8, 2**20
"""Largest ratio of contents to length of a file, where it refers to an object several times; 1 MiB is always
allowed."""
LONGEST_REASON = 200
SAVE_PLAINLY = "a pickle that names other objects can run any code; write its contents as arrays, lists and dicts"


def load_pickle(path: str | Path) -> Any:
    """Return what a pickle of numpy arrays, numbers, text and plain containers holds; anything else is refused.

    Pickles of Python 2 are read as Latin-1, which keeps every byte of their arrays. Time and memory are bounded by the
    length of the file.

    Raises:
        UserError: there is no such file, it names something that is not allowed, or it is not a whole pickle.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise UserError("no such annotation file", path)
        contents = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}", path) from error
    try:
        found = _ArrayUnpickler(contents).load()
        _check_nesting(found, EXPANSION * len(contents) + SMALL)
    except Refused as error:
        wanted = printable(str(error))[:LONGEST_REASON]
        raise UserError(
            f"refused: it asks for {wanted}, and only numpy arrays and plain containers are read", path, SAVE_PLAINLY
        ) from None
    except Forged as error:
        found = printable(str(error))[:LONGEST_REASON]
        raise UserError(f"refused: it holds {found}", path, "take the file anew from where it is published") from None
    except Exception as error:  # a damaged pickle is a damaged program, which fails in any way at all
        reason = printable(f"{type(error).__name__}: {error}")[:LONGEST_REASON]
        raise UserError(f"is not a readable pickle ({reason})", path) from error
    return found


class _ArrayUnpickler(pickle._Unpickler):
    """Unpickler whose instructions build nothing but sound arrays and plain containers.

    An index of 2**31 would make the one in C fill 32 GB.
    """

    dispatch: ClassVar[dict[int, Callable]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, contents: bytes) -> None:
        super().__init__(io.BytesIO(contents), encoding="latin1")
        self.arrays = PickledArrays(len(contents))

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if module in ("builtins", "__builtin__"):
            if name in CONTAINERS:
                return self._container(CONTAINERS[name])
            plain = {"bytearray": self._bytearray, "bytes": _no_bytes, "complex": _complex}
            if name in plain:
                return plain[name]
        array_function = module.startswith(ARRAY_MODULES) and (module.partition("core.")[2], name)
        functions = {
            "collections.OrderedDict": self._container(collections.OrderedDict),
            "collections.defaultdict": self._defaultdict,
            "_codecs.encode": self._encode,
            "numpy.ndarray": ARRAY_CLASS,
            "numpy.dtype": self.arrays.dtype,
            ("multiarray", "_reconstruct"): self.arrays.empty,
            ("multiarray", "scalar"): self.arrays.scalar,
            ("numeric", "_frombuffer"): self.arrays.from_buffer,
        }
        for known in (full, array_function):
            if known in functions:
                return functions[known]
        raise Refused(full)

    def persistent_load(self, pid: Any) -> Any:
        raise Refused(f"the outside object {pid!r}" if isinstance(pid, str) else "an outside object")

    def get_extension(self, code: int) -> None:
        raise Refused(f"the extension {code}")

    # What a file may call.

    def _container(self, kind: type) -> Any:
        def make(entries: Any = ()) -> Any:
            if type(entries) not in (tuple, list, dict, set, frozenset):
                raise Forged(f"a {kind.__name__} of type {type(entries).__name__}")
            self.arrays.spend(len(entries))
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
        data = raw_bytes(data if encoding in ("latin1", "latin-1") else None)
        self.arrays.spend(len(data))
        return bytearray(data)

    def _encode(self, text: str, encoding: str) -> bytes:
        """Replacement for the call by which Python 3 writes bytes in old protocols. Other encodings would import."""
        if encoding != "latin1":
            raise Refused(f"the encoding {encoding!r}" if isinstance(encoding, str) else "an encoding")
        self.arrays.spend(len(text))
        return raw_bytes(text)

    # Instructions that would do as the file says.

    def load_build(self) -> None:
        """Give an array or a dtype its state."""
        state = self.stack.pop()
        self.arrays.set_state(self.stack[-1], state)

    dispatch[pickle.BUILD[0]] = load_build

    def load_bytearray8(self) -> None:
        """Read a bytearray; unlike the original, take no memory before its length is checked."""
        size = int.from_bytes(self.read(8), "little")
        if size > self.arrays.length:
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
                raise Forged(f"a key of type {type(part).__name__}")


def _no_bytes() -> bytes:
    """Replacement for the call by which Python 3 writes empty bytes in the protocols of Python 2."""
    return b""


def _complex(real: float, imag: float) -> complex:
    if not (isinstance(real, float) and isinstance(imag, float)):
        raise Forged("a complex number of other values")
    return complex(real, imag)


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


def _size(entry: Any) -> int:
    """Return the bytes of what holds no objects, at least 1."""
    if isinstance(entry, np.ndarray):
        return 1 + entry.nbytes
    return 1 + len(entry) if isinstance(entry, str | bytes | bytearray) else 1


def _check_nesting(root: Any, largest: int) -> None:
    """Refuse contents that are nested too deeply, hold themselves, or repeat objects so often that a walk never ends.

    Args:
        root: what was read.
        largest: largest size, each object counted as often as it is named.
    """
    known: dict[int, tuple[int, int]] = {}  # how large each container is, and how deep
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
                    raise Forged(f"containers more than {DEEPEST} deep")
                path.append(_Level(entry))
                continue
            size, height = known[id(entry)]
        else:
            size, height = _size(entry), 0
        if path:
            above = path[-1]
            above.size, above.height = above.size + size, max(above.height, height + 1)
            if len(path) + above.height > DEEPEST + 1:
                raise Forged(f"containers more than {DEEPEST} deep")
            if above.size > largest:
                raise Forged(f"the same objects so often that they are {EXPANSION} times as long as the file")
