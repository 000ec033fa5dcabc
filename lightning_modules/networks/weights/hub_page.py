"""The page of weights on the Hugging Face hub, made from their card."""

from __future__ import annotations

from collections.abc import Sequence

import yaml
from tabulate import tabulate

from .card import Card

USE = """```python
from lightning_modules.session import StreamSession

session = StreamSession.from_pretrained("OWNER/NAME")  # or the folder that holds this file
for prediction in session.predict("street.mp4"):
    for person in prediction.people:
        print(prediction.seconds, person.track, person.box, person.actions)
```"""


def hub_page(card: Card, num_parameters: int) -> str:
    """Return the page as Markdown, with the front matter that the hub reads."""
    front = {
        "library_name": "onlooker",
        "pipeline_tag": "video-classification",
        "tags": ["action-detection", "spatio-temporal-action-detection", "online-video", "streaming"],
    }
    rows = [
        ("network", f"{card.network.get('class_path')}, {num_parameters:,} parameters"),
        ("trained on", card.trained_on),
        ("frames", _frames(card)),
        ("delay", f"{card.look_ahead} sampled frames{_seconds(card)}"),
        ("pixels", f"RGB between 0 and 1, minus {card.mean:g}, over {card.std:g}"),
        ("code", f"commit {card.commit}"),
    ]
    return "\n".join(
        [
            f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
            "# Online detection of people and their actions",
            "",
            "Boxes, tracks and actions of people, frame by frame, from a video or a camera.",
            "",
            tabulate(rows, headers=("", ""), tablefmt="github"),
            "",
            f"{len(card.classes)} actions: {_listed(card.classes)}.",
            "",
            "With Onlooker installed:",
            "",
            USE,
            "",
        ]
    )


def _frames(card: Card) -> str:
    of_rate = "" if card.frame_rate is None else f" of {card.frame_rate:g} per second"
    size = "in the size of the video" if card.short_side is None else f"short side {card.short_side} pixels"
    return f"one in {card.frame_stride}{of_rate}, {size}"


def _seconds(card: Card) -> str:
    return "" if card.frame_rate is None else f" ({card.look_ahead * card.frame_stride / card.frame_rate:.2f} s)"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
