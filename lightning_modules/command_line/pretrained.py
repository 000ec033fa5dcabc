"""``predict`` and ``serve`` from a weights file alone: its card says what a config would have to repeat by hand.

    python main.py predict --weights results/weights/dsta.pt --source street.mp4
    python main.py predict --weights runs/export/dsta.onnx --source street.mp4 --runtime openvino

Arguments of other commands pass unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml

from datamodules.errors import UserError

from ..networks.weights.card import Card
from ..networks.weights.configured import importable
from ..networks.weights.loading import read_weights
from ..networks.weights.pretrained import require_streaming, weights_file
from ..runtimes.exported_file import SUFFIX, read_exported_step
from ..runtimes.opening import RuntimeChoice, require_fits

CONFIGS = Path(__file__).parents[2] / "configs"
COMMANDS = ("predict", "serve")
"""Commands that predict; all but weights and source is in the config of their name."""
ALIASES = {"--source": "--data.init_args.source"}
WEIGHTS, NETWORK, RATE = "model.init_args.weights", "model.init_args.network", "data.init_args.frame_rate"

Settings = list[tuple[str, str]]
"""Keys with their dashes, and values."""


def with_card(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of ``predict`` or ``serve`` with what the weights say of network, classes and frames.

    ``--weights``, ``--source`` and ``--runtime`` are short for the keys of the module and of the data; without
    ``--config`` that of the command is taken. A student's exported file is run by itself, in the runtime asked for. The
    card of the weights, named here or in the config, gives the network unless one is given. It also gives the names of
    its classes, stride, frame rate and short side. Whatever else is given comes after it, so it counts. Arguments of
    other commands are returned as they are.

    Raises:
        UserError: there is a source but no weights, or these have no card though a network is wanted, or none of a
            streaming detector.
    """
    if not arguments or arguments[0] not in COMMANDS:
        return list(arguments)
    settings = [(ALIASES.get(key, key), value) for key, value in _settings(arguments[1:])]
    configs = [value for key, value in settings if key == "--config"]
    named = [value for key, value in settings if key == "--weights"]
    runtime = next((value for key, value in reversed(settings) if key == "--runtime"), None)
    others = [(key, value) for key, value in settings if key not in ("--config", "--weights", "--runtime")]
    has_class = any(_short(key) in ("data", "data.class_path") for key, _ in settings)
    if not configs and (named or (_last(others, WEIGHTS) and not has_class)):
        configs = [str(CONFIGS / f"{arguments[0]}.yaml")]
    if not (configs or has_class) and any(key == ALIASES["--source"] for key, _ in settings):
        raise UserError("no weights are named", remedy="give --weights FILE, or a --config that says what predicts")
    in_config = _from_configs(configs)
    weights = _last(others, WEIGHTS) or (named or [in_config.get(WEIGHTS)])[-1]
    if runtime is not None and runtime not in get_args(RuntimeChoice):
        raise UserError(f"must be one of {', '.join(get_args(RuntimeChoice))}, got {runtime!r}", where="--runtime")
    if weights is not None and str(weights).endswith(SUFFIX):
        path = Path(weights)
        require_fits(runtime, path)
        card = read_exported_step(path).card
        require_streaming(card, path)
        network = {"class_path": "ExportedStudent", "init_args": {"file": str(path), "runtime": runtime}}
        told = [("--model", "ExportedDetectionModule"), (f"--{NETWORK}", json.dumps(network))]
        told += _frames_of(card, path, has_rate=_last(others, RATE) is not None)
        return [arguments[0], *_joined([("--config", config) for config in configs] + told + others)]
    if runtime is not None:
        require_fits(runtime, Path(weights or "the config"))
    if weights is None or (not named and NETWORK in in_config):
        return [arguments[0], *_joined([("--config", config) for config in configs] + others)]
    path = weights_file(weights)
    card = read_weights(path)[1]
    has_network = any(_is_below(key, NETWORK) for key, _ in others)
    told: Settings = [(f"--{WEIGHTS}", str(path))]
    if card is not None:
        require_streaming(card, path)
        told += _of_card(card, path, has_network, has_rate=_last(others, RATE) is not None)
    elif not has_network:
        raise UserError(
            "has no card that says how to build its network",
            where=path,
            remedy=f"give --{NETWORK}, --data.init_args.classes and the stride and frame rate of its frames",
        )
    return [arguments[0], *_joined([("--config", config) for config in configs] + told + others)]


def _of_card(card: Card, path: Path, has_network: bool, has_rate: bool) -> Settings:
    network: Settings = [] if has_network else [(f"--{NETWORK}", json.dumps(importable(card.network)))]
    return network + _frames_of(card, path, has_rate)


def _frames_of(card: Card, path: Path, has_rate: bool) -> Settings:
    """Return the settings of the frames that a network takes, and the names of its classes."""
    if card.frame_rate is None and not has_rate:
        raise UserError(
            "its card does not say the frame rate of the training videos", where=path, remedy=f"give --{RATE}"
        )
    rate = {} if card.frame_rate is None else {RATE: card.frame_rate}
    frames = {"classes": list(card.classes), "frame_stride": card.frame_stride, "short_side": card.short_side}
    told = {f"data.init_args.{name}": value for name, value in frames.items()} | rate
    return [(f"--{key}", json.dumps(value)) for key, value in told.items()]


def _settings(arguments: Sequence[str]) -> Settings:
    """Pair the arguments of a command, ``--key value``, ``--key=value`` or ``-c value``; a lone one gets no key."""
    pairs: Settings = []
    waiting: str | None = None
    for argument in arguments:
        argument = "--config" if argument == "-c" else argument
        key, sign, value = argument.partition("=")
        if waiting is not None:
            pairs.append((waiting, argument))
            waiting = None
        elif not argument.startswith("--"):
            pairs.append(("", argument))
        elif sign:
            pairs.append((key, value))
        elif argument in ("--help", "--print_config"):
            pairs.append(("", argument))
        else:
            waiting = argument
    return pairs if waiting is None else [*pairs, ("", waiting)]


def _joined(settings: Settings) -> list[str]:
    return [f"{key}={value}" if key else value for key, value in settings]


def _short(key: str) -> str:
    return key.removeprefix("--").replace(".init_args", "")


def _is_below(key: str, parent: str) -> bool:
    return f"{_short(key)}.".startswith(f"{_short(parent)}.")


def _last(settings: Settings, key: str) -> str | None:
    """Return the value that counts of a key, which may be written without ``init_args``."""
    values = [value for given, value in settings if _short(given) == _short(key)]
    return values[-1] if values else None


def _from_configs(configs: Sequence[str]) -> dict[str, Any]:
    """Return the weights and the network that configs name, if they do; files that cannot be read are left to the
    parser, which says so."""
    found: dict[str, Any] = {}
    for config in configs:
        try:
            content = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            continue
        model = content.get("model") if isinstance(content, dict) else None
        given = {**model, **(model.get("init_args") or {})} if isinstance(model, dict) else {}
        found |= {key: given[_short(key)[len("model.") :]] for key in (WEIGHTS, NETWORK) if _short(key)[6:] in given}
    return found
