"""Card of a weights file: all that a program needs to use it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from ..layers.pixels import MEAN, STD

NETWORKS = __package__.rpartition(".")[0]
"""The package of all networks."""
OURS = re.compile(rf"({re.escape(NETWORKS)}(\.\w+)*|{NETWORKS.partition('.')[0]})\.\w+")


@dataclass(frozen=True)
class Card:
    """Description of a network: how it was built and trained, and what frames it takes.

    Args:
        network: its config, class and arguments, see ``build_network``; classes without their modules.
        classes: names in the order of the scores.
        frame_stride: raw frames from one training frame to the next.
        frame_rate: frames per second of the training videos before the stride; None where it is not known.
        short_side: short side of its frames in pixels; None where they came in the size of the video.
        trained_on: data and split. commit: of the code that trained it.
        look_ahead: delay of its output in frames of the stream; 0 for a clip.
        mean, std: normalisation of pixels between 0 and 1.
    """

    network: dict[str, Any]
    classes: tuple[str, ...]
    frame_stride: int
    frame_rate: float | None
    short_side: int | None
    trained_on: str
    commit: str
    look_ahead: int = 0
    mean: float = MEAN
    std: float = STD

    def to_dict(self) -> dict[str, Any]:
        """Return it in plain types."""
        return asdict(self) | {"classes": list(self.classes)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Card:
        """Read what ``to_dict`` has written.

        Raises:
            ValueError: entries that are missing, unknown or of another type; it names them.
        """
        if not isinstance(content, Mapping):
            raise ValueError(f"a card holds entries by name, not a {type(content).__name__}")
        known = {field.name: field for field in fields(cls)}
        required = {name for name, field in known.items() if field.default is MISSING}
        if problems := sorted(required - content.keys()):
            raise ValueError(f"the card lacks {', '.join(problems)}")
        if problems := sorted(map(str, content.keys() - known.keys())):
            raise ValueError(f"the card has unknown entries {', '.join(problems)}")
        for name, value in content.items():
            if not isinstance(value, _TYPES[name]) or isinstance(value, bool):
                raise ValueError(f"the card's {name} is {value!r}")
        if not all(isinstance(name, str) for name in content["classes"]):
            raise ValueError(f"the card's classes are {content['classes']!r}, not names")
        network = with_classes_renamed(content["network"], short_name)
        return cls(**{**content, "network": network, "classes": tuple(content["classes"])})


_TYPES: dict[str, tuple[type, ...]] = {
    "network": (Mapping,),
    "classes": (list, tuple),
    "frame_stride": (int,),
    "frame_rate": (int, float, type(None)),
    "short_side": (int, type(None)),
    "trained_on": (str,),
    "commit": (str,),
    "look_ahead": (int,),
    "mean": (int, float),
    "std": (int, float),
}


def short_name(name: str) -> str:
    """Return the name of a class of networks without its module, which may move; others as they are.

    >>> short_name("lightning_modules.networks.detection.vit.VideoViT"), short_name("os.system")
    ('VideoViT', 'os.system')
    """
    return name.rpartition(".")[2] if OURS.fullmatch(name) else name


def with_classes_renamed(config: Any, rename: Callable[[str], str]) -> Any:
    """Return the config of an object with other names of classes, inside other objects too."""
    if isinstance(config, Mapping):
        return {
            key: rename(value)
            if key == "class_path" and isinstance(value, str)
            else with_classes_renamed(value, rename)
            for key, value in config.items()
        }
    return [with_classes_renamed(value, rename) for value in config] if isinstance(config, list | tuple) else config
