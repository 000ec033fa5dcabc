"""Streaming detectors by name: a weights file, a folder, a repository of the Hugging Face hub."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

from torch import nn

from datamodules.errors import UserError
from datamodules.files import write_whole

from ..layers.pixels import MEAN, STD
from ..students.detector import StreamingDetector
from .card import Card
from .configured import load_network
from .hub_page import hub_page
from .safetensors_file import SUFFIX, write_safetensors

FILE = f"model{SUFFIX}"
"""The weights of a folder or a repository."""
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
FILE_ENDINGS = (SUFFIX, ".pt", ".pth", ".ckpt")


def load_streaming(name: str | Path) -> tuple[StreamingDetector, Card]:
    """Return the streaming detector that a name stands for, in eval mode, and its card.

    Args:
        name: as of ``weights_file``.

    Raises:
        UserError: there is none of that name, it is damaged, or it is no streaming detector.
    """
    path = weights_file(name)
    network, card = load_network(path)
    require_streaming(card, path)
    if not isinstance(network, StreamingDetector):
        raise UserError(f"holds a {type(network).__name__}, no streaming detector", where=path)
    if network.look_ahead != card.look_ahead:
        raise UserError(f"its card says look_ahead={card.look_ahead}, its network has {network.look_ahead}", where=path)
    return network, card


def require_streaming(card: Card, path: Path) -> None:
    """Refuse what cannot be predicted with frame by frame, from the card alone.

    Raises:
        UserError: the network is no streaming detector, or takes pixels in another form than this program makes.
    """
    kind = card.network.get("class_path")
    if kind != StreamingDetector.__name__:
        raise UserError(
            f"holds a {kind}, no streaming detector", where=path, remedy="take a student's weights, such as dsta.pt"
        )
    if (card.mean, card.std) != (MEAN, STD):
        raise UserError(
            f"takes pixels normalised by mean {card.mean} and std {card.std}; here they are {MEAN} and {STD}",
            where=path,
        )


def weights_file(name: str | Path) -> Path:
    """Return the file with the weights that a name stands for.

    Args:
        name: a weights file (``.pt``, ``.safetensors``), a folder that ``save_pretrained`` wrote, or a repository of
            the Hugging Face hub (``owner/name``), which is downloaded once.

    Raises:
        UserError: there is none of that name.
    """
    path = Path(name)
    if path.is_dir():
        if not (path / FILE).is_file():
            raise UserError(f"a folder without {FILE}", where=path, remedy="name the weights file itself")
        return path / FILE
    is_repository = REPOSITORY.fullmatch(str(name)) and path.suffix not in FILE_ENDINGS
    if path.exists() or not is_repository:
        if not path.is_file():
            raise UserError(
                "no such weights", where=name, remedy="name a weights file, a folder, or a hub repository owner/name"
            )
        return path
    with _hub(str(name)) as hub:
        return Path(hub.hf_hub_download(str(name), FILE))


def save_pretrained(network: nn.Module, card: Card, folder: str | Path) -> None:
    """Write weights with their card, and a page about them, into a folder; made if missing.

    Raises:
        UserError: the files cannot be written.
    """
    write_safetensors(network.state_dict(), Path(folder) / FILE, card)
    write_whole(Path(folder) / "README.md", hub_page(card, sum(p.numel() for p in network.parameters())))


def push_to_hub(network: nn.Module, card: Card, name: str, private: bool = True) -> str:
    """Upload what ``save_pretrained`` writes to a repository of the Hugging Face hub; return its address.

    Args:
        network: whose weights.
        card: theirs.
        name: ``owner/name``; made if missing.
        private: whether a new repository is.

    Raises:
        UserError: no huggingface_hub, no connection, or no right to write there.
    """
    with TemporaryDirectory() as folder, _hub(name) as hub:
        save_pretrained(network, card, folder)
        api = hub.HfApi()
        address = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=name, commit_message=f"Weights, trained at {card.commit}")
        return str(address)


@contextmanager
def _hub(name: str) -> Iterator[ModuleType]:
    """Yield huggingface_hub; what it raises for want of a connection, a repository or a right becomes a UserError."""
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UserError(
            "no such file or folder, and a repository of the hub needs huggingface_hub",
            where=name,
            remedy="pip install 'onlooker[hub]' brings it",
        )
    import huggingface_hub
    from huggingface_hub import errors

    try:
        yield huggingface_hub
    except errors.LocalEntryNotFoundError as error:
        raise UserError(
            "neither a file or folder here nor on the hub as far as it can be reached",
            where=name,
            remedy="check the name and the connection",
        ) from error
    except (OSError, errors.HFValidationError, getattr(errors, "HTTPError", OSError)) as error:
        reason = str(error).strip().partition("\n")[0]
        remedy = "check the name, the connection and `hf auth login`"
        raise UserError(f"the hub cannot be used ({reason})", where=name, remedy=remedy) from error
