"""Metadata of an exported ONNX file: how it is called, and the card of its network."""

from __future__ import annotations

import base64
import importlib.util
import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datamodules.errors import UserError

from ..networks.detection.outputs import ScoreRule
from ..networks.weights.card import Card
from ..networks.weights.safetensors_file import CARD

SUFFIX = ".onnx"
STATE = "initial_state_npz"
"""The entry of the metadata with the initial state of one stream, a compressed ``npz`` as base64."""


class ExportedStep(NamedTuple):
    """Call of a student's exported step, and the meaning of its predictions."""

    card: Card
    image_size: tuple[int, int]
    """Height and width of the frames, the only ones that it takes."""
    batch_size: int | None
    """Streams of a call; None for any number."""
    initial_state: dict[str, np.ndarray]
    """State of one stream, by the names of the inputs."""
    score: ScoreRule
    precision: str


def state_text(state: Mapping[str, np.ndarray]) -> str:
    """Return the initial state of one stream as the text that the metadata hold."""
    content = BytesIO()
    np.savez_compressed(content, **{name: value[:1] for name, value in state.items()})
    return base64.b64encode(content.getvalue()).decode()


def read_exported_step(path: Path) -> ExportedStep:
    """Read what a student's exported file says of itself.

    Raises:
        UserError: no such file, a damaged one, a teacher's clip, one from before cards were inside, or one whose card
            says another delay than the graph has.
    """
    about = metadata_of(path)
    if about.get("kind") != "step":
        what = "a teacher's clip" if about.get("kind") == "clip" else "no exported detector"
        raise UserError(f"holds {what}, no streaming detector", where=path, remedy="export a student")
    if CARD not in about or STATE not in about:
        raise UserError("has no card inside", where=path, remedy="export it again")
    try:
        card = Card.from_dict(json.loads(about[CARD]))
        with np.load(BytesIO(base64.b64decode(about[STATE]))) as stored:
            state = {name: stored[name] for name in stored.files}
        height, width = json.loads(about["image_size"])
        batch_size = None if about["batch_size"] == "any" else int(about["batch_size"])
        step = ExportedStep(card, (height, width), batch_size, state, _rule(about["score"]), about["precision"])
        look_ahead = int(about["look_ahead"])
    except (KeyError, ValueError, OSError) as error:
        raise UserError(f"its metadata cannot be read: {error}", where=path, remedy="export it again") from error
    if look_ahead != card.look_ahead:
        raise UserError(
            f"its card says look_ahead={card.look_ahead}, its graph has {look_ahead}",
            where=path,
            remedy="export it again",
        )
    return step


def metadata_of(path: Path) -> dict[str, str]:
    """Return the metadata of an ONNX file.

    Raises:
        UserError: there is no such file, it is damaged, or the package that reads it is missing.
    """
    if not path.is_file():
        raise UserError("no such file", where=path)
    if importlib.util.find_spec("onnx") is None:
        raise UserError("reading it needs onnx", where=path, remedy="pip install 'onlooker[export]' brings it")
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise UserError("is damaged, or no ONNX file", where=path, remedy="export or copy it again") from error
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}", where=path) from error
    return {entry.key: entry.value for entry in model.metadata_props}


def _rule(text: str) -> ScoreRule:
    if text == "person_x_action" or text == "action":
        return text
    raise ValueError(f"score is {text!r}")
