"""Names of parameters in weights and checkpoints from before detectors were made of parts.

A clip detector had its pyramid, localizer and decoder beside its backbone. A streaming detector had the trunk's parts
beside them. Its blocks called their attention ``temporal``, like those of temporal networks. Values and their order are
the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

_HEAD = re.compile(r"(pyramid|localizer|decoder)\.")
_TRUNK = re.compile(r"(patch_embed|blocks|norm)\.")
_TRUNK_OF_FEATURES = re.compile(r"(^|\.)trunk\.(patch_embed|blocks|norm)\.")
_TEMPORAL = re.compile(r"((?:^|\.)blocks\.\d+)\.temporal\.")


def has_old_names(names: Iterable[str]) -> bool:
    """Return whether these are parameters from before."""
    return any(name.startswith("localizer.") or _TEMPORAL.search(name) for name in names)


def renamed_from_old(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the parameters of a network under the names that it has now."""
    return {_new_name(name): value for name, value in state.items()}


def _new_name(name: str) -> str:
    if _HEAD.match(name):
        return f"head.{name}"
    name = f"trunk.{name}" if _TRUNK.match(name) else _TRUNK_OF_FEATURES.sub(r"\1trunk.trunk.\2.", name)
    return _TEMPORAL.sub(r"\1.attention.", name)
