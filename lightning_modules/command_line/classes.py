"""Classes as configs name them: by their full path, or by their name alone where a room defines it."""

from __future__ import annotations

import pydoc
import sys

ROOMS = ("lightning_modules", "datamodules", "callbacks", "lightning.pytorch", "torch.optim")
"""Whose imported modules define the classes that a config may name shortly."""


def known_classes() -> dict[str, type]:
    """Return all classes of the rooms that are imported, by name."""
    modules = [module for name, module in list(sys.modules.items()) if name.startswith(ROOMS) and module is not None]
    return {name: value for module in modules for name, value in vars(module).items() if isinstance(value, type)}


def locate(name: str) -> type | None:
    """Return the class of a full path or of a name alone, None where there is none."""
    try:
        found = pydoc.locate(name) if "." in name else known_classes().get(name)
    except pydoc.ErrorDuringImport:
        return None
    return found if isinstance(found, type) else None
