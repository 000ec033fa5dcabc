"""Reading, checking and placing weights: checkpoints, shipped weights, a student's start from its teacher.

``python -m lightning_modules.networks.weights runs/evad/latest/checkpoints/last.ckpt results/weights/evad.pt`` takes
the network out of a checkpoint, in half precision.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

import torch
from torch import Tensor, nn

from .student import StreamingDetector

KEYS_SHOWN = 12


def read_state_dict(path: str | Path, prefix: str = "network.") -> dict[str, Tensor]:
    """The tensors of a weights file or a Lightning checkpoint, in float32, without executing anything in it.

    Of a checkpoint only the keys that start with ``prefix`` are taken, and lose it. Weights are stored in half
    precision where they ship with the repository.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}; name an existing file or leave the weights out to start fresh")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} holds more than tensors and is not read: {error}") from error
    if isinstance(content, Mapping) and "state_dict" in content:
        whole = content["state_dict"]
        content = {key.removeprefix(prefix): value for key, value in whole.items() if key.startswith(prefix)}
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{path} holds no weights of a network (expected tensors by name, or a Lightning checkpoint)")
    return {key: value.float() if value.is_floating_point() else value for key, value in content.items()}


def load_exactly(network: nn.Module, state_dict: Mapping[str, Tensor], fresh: Sequence[str] = ()) -> None:
    """Load weights so that nothing is missing, left over or misshapen; an error lists what is.

    ``fresh`` are patterns (``decoder.blocks.*.action_logits.*``) of parameters that keep their present values and whose
    weights in the file, if any, are passed over: what fine-tuning for other classes needs.
    """
    own = network.state_dict()

    def is_fresh(key: str) -> bool:
        return any(fnmatch(key, pattern) for pattern in fresh)

    unused = [pattern for pattern in fresh if not any(fnmatch(key, pattern) for key in own)]
    wanted, given = ({key for key in keys if not is_fresh(key)} for keys in (own, state_dict))
    missing, left_over = sorted(wanted - given), sorted(given - wanted)
    misshapen = [
        f"{key}: {tuple(state_dict[key].shape)} in the file, {tuple(own[key].shape)} in the network"
        for key in sorted(wanted & given)
        if state_dict[key].shape != own[key].shape
    ]
    problems = [
        f"{name} ({len(keys)}): " + ", ".join(keys[:KEYS_SHOWN]) + (", ..." if len(keys) > KEYS_SHOWN else "")
        for name, keys in (
            ("missing", missing),
            ("left over", left_over),
            ("misshapen", misshapen),
            ("patterns of fresh parameters that match nothing", unused),
        )
        if keys
    ]
    if problems:
        raise ValueError(
            "the weights do not fit the network; "
            + "; ".join(problems)
            + ". Build the network with the sizes of the weights, or name the parameters that shall start fresh"
        )
    # Fresh parameters are absent on purpose; everything else has been checked above.
    network.load_state_dict({key: value for key, value in state_dict.items() if key in wanted}, strict=False)


def save_weights(state_dict: Mapping[str, Tensor], path: str | Path) -> None:
    """Weights only, in half precision, with nothing to execute: what ships with the repository."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    halves = {key: (value.half() if value.is_floating_point() else value).clone() for key, value in state_dict.items()}
    torch.save(halves, path)


@torch.no_grad()
def student_from_teacher(student: StreamingDetector, teacher: Mapping[str, Tensor]) -> None:
    """Start a student from its teacher's ``state_dict``: every weight that has a place in it is copied.

    The embedding reads the newest two frames with the teacher's tubelet kernel. Parts that the teacher lacks (LSTM,
    gates, age codes) keep their own start.

    Raises:
        ValueError: where the two do not have the same sizes; it lists the parameters.
    """
    weights = {}
    for key, value in teacher.items():
        key = key.removeprefix("backbone.")
        for part in ("norm1", "attn"):
            if key.startswith("blocks."):
                key = key.replace(f".{part}.", f".temporal.{part}.")
        weights[key] = value
    new = ["blocks.*.temporal.temporal_norm.*", "blocks.*.temporal.into_lstm.*", "blocks.*.temporal.lstm.*"]
    new += ["blocks.*.temporal.out_of_lstm.*", "blocks.*.temporal.gate", "memory.age_code"]
    own = student.state_dict()
    load_exactly(student, weights, [pattern for pattern in new if any(fnmatch(key, pattern) for key in own)])


if __name__ == "__main__":
    import sys

    if len(sys.argv) != 3:
        sys.exit("usage: python -m lightning_modules.networks.weights CHECKPOINT WEIGHTS_FILE")
    save_weights(read_state_dict(sys.argv[1]), sys.argv[2])
