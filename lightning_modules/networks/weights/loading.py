"""Reading, checking and saving weights: checkpoints, shipped weights, and those that EVAD's authors published.

``python -m lightning_modules.networks.weights.take`` takes a network out of a checkpoint.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datamodules.errors import UserError
from datamodules.files import whole_file
from datamodules.tensor_file import read_tensor_file

from ..detection.context_decoder import ContextDecoder
from ..detection.evad import EvadTeacher
from ..detection.head import DetectionHead
from ..detection.localizer import Localizer
from ..detection.token_dropout import KeyOrder
from ..detection.vit import VideoViT
from ..layers.trunk_size import TrunkSize
from .card import Card
from .classes import check_classes
from .evad_names import is_release, renamed_from_release, sizes_from_shapes
from .old_names import has_old_names, renamed_from_old
from .safetensors_file import SUFFIX, read_safetensors, write_safetensors

KEYS_SHOWN = 12


def read_state_dict(path: str | Path, prefix: str = "network.") -> dict[str, Tensor]:
    """The tensors of a weights file or a Lightning checkpoint, in float32, without executing anything in it.

    Of a checkpoint only the keys that start with ``prefix`` are taken, and lose it. Weights are stored in half
    precision where they ship with the repository. A checkpoint of EVAD's release comes out under our names, and so does
    a file from before detectors were made of parts.
    """
    return read_weights(path, prefix)[0]


def read_weights(path: str | Path, prefix: str = "network.") -> tuple[dict[str, Tensor], Card | None]:
    """Return the tensors of a file, see ``read_state_dict``, and its card, None where it has none.

    Raises:
        UserError: it is not there or damaged, holds no weights, more than weights, or a card that is none.
    """
    content: Any
    path, card = Path(path), None
    if path.suffix == SUFFIX:
        content, card = read_safetensors(path)
    else:
        content = read_tensor_file(path)
    if isinstance(content, Mapping) and "card" in content and "state_dict" in content:
        try:
            card = Card.from_dict(content["card"])
        except ValueError as error:
            raise UserError(str(error), where=path) from error
        content = content["state_dict"]
    elif isinstance(content, Mapping) and "state_dict" in content:
        whole = content["state_dict"]
        content = {key.removeprefix(prefix): value for key, value in whole.items() if key.startswith(prefix)}
    elif isinstance(content, Mapping) and is_release(content):
        content = renamed_from_release(content)
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(
            "holds no weights of a network (expected tensors by name, or a Lightning checkpoint)", where=path
        )
    if has_old_names(content):
        content = renamed_from_old(content)
    return {key: value.float() if value.is_floating_point() else value for key, value in content.items()}, card


def load_exactly(network: nn.Module, state_dict: Mapping[str, Tensor], fresh: Sequence[str] = ()) -> None:
    """Load weights so that nothing is missing, left over or misshapen; an error lists what is.

    ``fresh`` are patterns (``decoder.blocks.*.action_logits.*``) of parameters that keep their present values, for
    fine-tuning on other classes. Their weights in the file, if any, are ignored.
    """
    own = network.state_dict()

    def is_fresh(key: str) -> bool:
        return any(fnmatch(key, pattern) for pattern in fresh)

    unused = [pattern for pattern in fresh if not any(fnmatch(key, pattern) for key in own)]
    wanted, given = ({key: value for key, value in keys.items() if not is_fresh(key)} for keys in (own, state_dict))
    problems = misfits(wanted, given)
    if unused:
        problems.append(_listed("patterns of fresh parameters that match nothing", unused))
    if problems:
        raise ValueError(
            "the weights do not fit the network; "
            + "; ".join(problems)
            + ". Build the network with the sizes of the weights, or name the parameters that shall start fresh"
        )
    # Fresh parameters are absent on purpose; everything else has been checked above.
    network.load_state_dict({key: value for key, value in state_dict.items() if key in wanted}, strict=False)


def misfits(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """List which of a network's tensors are missing in a file, which are left over there, and which are misshapen."""
    kinds = {
        "missing": sorted(own.keys() - given.keys()),
        "left over": sorted(given.keys() - own.keys()),
        "misshapen": [
            f"{key}: {tuple(given[key].shape)} in the file, {tuple(own[key].shape)} in the network"
            for key in sorted(own.keys() & given.keys())
            if given[key].shape != own[key].shape
        ],
    }
    return [_listed(kind, keys) for kind, keys in kinds.items() if keys]


def _listed(kind: str, keys: Sequence[str]) -> str:
    return f"{kind} ({len(keys)}): " + ", ".join(keys[:KEYS_SHOWN]) + (", ..." if len(keys) > KEYS_SHOWN else "")


def load_weights(network: nn.Module, path: str | Path, fresh: Sequence[str] = ()) -> Card | None:
    """Load a weights file or a checkpoint as ``load_exactly`` does, and return its card; errors name the file.

    Raises:
        UserError: the file cannot be read, or does not fit.
    """
    weights, card = read_weights(path)
    check_classes(network, weights, path, fresh)
    try:
        load_exactly(network, weights, fresh)
    except ValueError as error:
        raise UserError(str(error), where=path) from error
    return card


def evad_from_release(
    state_dict: Mapping[str, Any],
    *,
    num_heads: int = 12,
    decoder_heads: int = 6,
    localizer_heads: int = 8,
    keep_rates: Mapping[int, float] | Sequence[float],
    enhanced_weight: float = 1.0,
    pyramid_layers: Sequence[int] = (2, 5, 8, 11),
    roi_extension: tuple[float, float] = (0.4, 0.2),
    decoder_roi_size: int = 7,
    pretrain_size: int = 224,
    num_frames: int = 16,
    key_order: KeyOrder = "position",
) -> EvadTeacher:
    """The teacher of a checkpoint that EVAD's authors published, in eval mode, in float32.

    Every size that shapes tell is read from them; the arguments are what they do not tell. The defaults are those of
    the published ViT-B models with token dropout. The model without has ``roi_extension=(0, 0)``, ViT-L has 16, 8 and 8
    heads and ``pyramid_layers=(5, 11, 17, 23)``.

    Args:
        state_dict: a release checkpoint as ``torch.load(..., weights_only=True)`` gives it, or its ``model_state``.
        keep_rates: encoder block (from 0) -> keep rate, or one rate a block; ``{}`` where nothing is dropped.
        enhanced_weight: how often a keyframe query counts in the scores of token dropout.
        key_order: ``position`` puts kept tokens back where they came from. The published code permutes the kept tokens
            (see ``KeyframeTokenDropout``), and its weights were trained that way. With dropout only ``as_published``
            reproduces their published results; a warning says so.

    Raises:
        ValueError: keys missing, left over or misshapen, or sizes that contradict the arguments; it lists them.
    """
    renamed = renamed_from_release(state_dict)
    sizes = sizes_from_shapes(renamed)
    if not isinstance(keep_rates, Mapping):
        if len(keep_rates) != sizes.trunk["depth"]:
            raise ValueError(
                f"keep_rates has {len(keep_rates)} entries but the encoder has {sizes.trunk['depth']} blocks"
            )
        keep_rates = dict(enumerate(keep_rates))
    if key_order == "position" and any(rate < 1 for rate in keep_rates.values()):
        warnings.warn(
            "published weights with token dropout were trained with permuted kept tokens; "
            'key_order="as_published" reproduces their results, "position" is right for further training',
            stacklevel=2,
        )
    trunk = TrunkSize(
        **sizes.trunk,
        num_heads=num_heads,
        num_frames=num_frames,
        pretrain_size=pretrain_size,
        pyramid_layers=tuple(pyramid_layers),
    )
    backbone = VideoViT(trunk, dict(keep_rates), enhanced_weight, key_order, sizes.learned_positions)
    decoder = partial(
        ContextDecoder, **sizes.decoder, num_heads=decoder_heads, roi_size=decoder_roi_size, roi_extension=roi_extension
    )
    localizer = Localizer(**sizes.localizer, num_heads=localizer_heads)
    head = partial(DetectionHead, localizer=localizer, decoder=decoder)
    teacher = EvadTeacher(sizes.num_classes, backbone, head)
    load_exactly(teacher, renamed)
    return teacher.eval()


def save_weights(state_dict: Mapping[str, Tensor], path: str | Path, card: Card | None = None) -> None:
    """Save weights in half precision with nothing to execute, and their card: what ships with the repository.

    The file is torch's, or of the safetensors format if it ends like one.
    """
    halves = {key: (value.half() if value.is_floating_point() else value).clone() for key, value in state_dict.items()}
    if Path(path).suffix == SUFFIX:
        write_safetensors(halves, path, card)
        return
    content = halves if card is None else {"state_dict": halves, "card": card.to_dict()}
    with whole_file(path, "wb") as file:
        torch.save(content, file)
