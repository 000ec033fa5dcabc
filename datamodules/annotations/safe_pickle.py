"""Annotation pickles, read without running what is in them.

An ordinary ``pickle.load`` calls whatever the file names, so that opening a downloaded annotation can do anything.
"""

from __future__ import annotations

import collections
import pickle
from pathlib import Path
from typing import Any

import numpy as np

ARRAY_MODULES = ("numpy.core.", "numpy._core.")
"""Where numpy 1 and numpy 2 keep the functions that build an array; each can read what the other wrote."""
PLAIN_TYPES = {
    f"{module}.{plain.__name__}": plain
    for module in ("builtins", "__builtin__")
    for plain in (dict, list, tuple, set, frozenset, bytearray, complex)
}
ALLOWED = {
    **PLAIN_TYPES,
    "collections.OrderedDict": collections.OrderedDict,
    "collections.defaultdict": collections.defaultdict,
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
}
"""What a file may name, besides the functions below."""


def load_pickle(path: str | Path) -> Any:
    """What a pickle of numpy arrays, numbers, text and plain containers holds; anything else is refused.

    Pickles of Python 2 are read as Latin-1, which keeps every byte of their arrays.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file names something that is not allowed, or is not a whole pickle.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such annotation file")
    with path.open("rb") as file:
        try:
            return _ArrayUnpickler(file, encoding="latin1").load()
        except _Refused as error:
            raise ValueError(
                f"{path} is refused: it asks for {error}, and only numpy arrays and plain containers are read. "
                "A pickle that names other things can run any code; write its contents as arrays, lists and dicts"
            ) from None
        except Exception as error:  # a damaged pickle fails in any way at all
            raise ValueError(f"{path} is not a readable pickle ({type(error).__name__}: {error})") from error


class _Refused(Exception):
    """Name of what a pickle may not have."""


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in ALLOWED:
            return ALLOWED[full]
        if full == "_codecs.encode":
            return _encode
        if module.startswith(ARRAY_MODULES):
            function = (module.partition("core.")[2], name)
            if function in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer")):
                return _numpy_function(*function)
        raise _Refused(full)

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused(f"the outside object {pid!r}")


def _encode(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes in the protocols of Python 2. Other encodings would be looked up by importing them."""
    if encoding != "latin1":
        raise _Refused(f"the encoding {encoding!r}")
    return text.encode("latin1")


def _numpy_function(module: str, name: str) -> Any:
    """One of numpy's own pickle functions, wherever the installed numpy has it."""
    core = np._core if hasattr(np, "_core") else np.core
    return getattr(getattr(core, module), name)
