"""Weights by the name of a file, a folder or a repository of the hub: what comes back, and what is refused."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import HfApi, constants
from safetensors import safe_open
from safetensors.torch import save_file

from datamodules.errors import UserError
from lightning_modules.networks.weights import pretrained
from lightning_modules.networks.weights.configured import build_network, network_config
from lightning_modules.networks.weights.loading import read_weights, save_weights
from lightning_modules.networks.weights.pretrained import (
    load_streaming,
    push_to_hub,
    save_pretrained,
    weights_file,
)
from lightning_modules.networks.weights.safetensors_file import CARD
from tests.networks.tiny import randomise
from tests.networks.weights.small import NETWORKS, small_card, small_config

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def config() -> dict:
    return small_config()


@pytest.fixture(scope="module")
def network(config):
    return randomise(build_network(config)).eval()


@pytest.fixture
def card(config):
    return small_card(config)


def same_weights(one, other) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_folder_gives_back_the_weights_to_the_last_bit_and_the_card(tmp_path, network, card):
    save_pretrained(network, card, tmp_path / "new" / "student")
    for name in (tmp_path / "new" / "student", tmp_path / "new" / "student" / "model.safetensors"):
        found, read = load_streaming(name)
        assert read == card and not found.training and same_weights(found, network)


@pytest.mark.parametrize(("name", "temporal"), [("dsta", "DecomposedAttention"), ("tsa", "TemporalShiftAttention")])
def test_a_weights_file_alone_decides_the_network_and_goes_through_safetensors(tmp_path, name, temporal):
    network, card = load_streaming(ROOT / "results" / "weights" / f"{name}.pt")
    assert type(network.trunk.blocks[0].attention).__name__ == temporal
    save_pretrained(network, card, tmp_path)
    again, read = load_streaming(tmp_path)
    assert same_weights(again, network) and read == card
    # Weights that were stored in half precision are again.
    assert (tmp_path / "model.safetensors").stat().st_size < 1.05 * (
        ROOT / "results" / "weights" / f"{name}.pt"
    ).stat().st_size


def test_other_programs_find_the_tensors_and_the_card(tmp_path, network, card):
    save_pretrained(network, card, tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(network.state_dict())
        assert json.loads(file.metadata()[CARD])["classes"] == ["sit", "stand", "walk"]


def test_the_page_beside_the_weights_says_what_the_card_says(tmp_path, network, card):
    save_pretrained(network, card, tmp_path)
    _, front, page = (tmp_path / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "onlooker"
    for fact in ("`sit`, `stand`, `walk`", "one in 2 of 16 per second", "3 sampled frames (0.38 s)", "miniature"):
        assert fact in page
    assert f"{sum(p.numel() for p in network.parameters()):,} parameters" in page


def refused(name, *, match: str) -> None:
    """In one line that names what was asked for."""
    with pytest.raises(UserError, match=match) as raised:
        load_streaming(name)
    assert "\n" not in str(raised.value) and str(raised.value).startswith(str(name))


def test_weights_without_a_card_are_refused(tmp_path, network):
    save_weights(network.state_dict(), tmp_path / "plain.pt")
    save_file(network.state_dict(), tmp_path / "plain.safetensors")
    for name in ("plain.pt", "plain.safetensors"):
        assert read_weights(tmp_path / name)[1] is None
        refused(tmp_path / name, match="has no card")


def test_a_teacher_is_refused(tmp_path):
    refused(ROOT / "results" / "weights" / "evad.pt", match="EvadTeacher, no streaming detector; take a student")


def test_a_temporal_detector_is_refused(tmp_path, card):
    config = network_config(NETWORKS / "temporal_tiny.yaml")
    temporal = build_network(config)
    names = tuple(f"class {number}" for number in range(temporal.num_classes))
    save_weights(temporal.state_dict(), tmp_path / "temporal.pt", replace(card, network=config, classes=names))
    refused(tmp_path / "temporal.pt", match="no streaming detector")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"mean": 0.5}, "normalised by mean 0.5 and std 0.225; here they are 0.45"),
        ({"look_ahead": 0}, "its card says look_ahead=0, its network has 3"),
        ({"classes": ("sit", "stand")}, "network has 3 classes, its card names 2"),
    ],
)
def test_a_card_that_contradicts_its_network_or_this_program_is_refused(tmp_path, network, card, change, match):
    for ending in ("pt", "safetensors"):
        path = tmp_path / f"student.{ending}"
        save = save_weights if ending == "pt" else pretrained.write_safetensors
        save(network.state_dict(), path, replace(card, **change))
        refused(path, match=match)


@pytest.mark.parametrize("forged", ["os.system", "subprocess.Popen", "torch.nn.Linear", "evil.StreamingDetector"])
def test_a_card_with_forged_names_of_classes_is_refused(tmp_path, network, card, config, forged):
    inside = {**config, "init_args": {**config["init_args"], "trunk": {"class_path": forged, "init_args": {}}}}
    for number, changed in enumerate(({**config, "class_path": forged}, inside)):
        for ending in ("pt", "safetensors"):
            path = tmp_path / f"forged{number}.{ending}"
            save = save_weights if ending == "pt" else pretrained.write_safetensors
            save(network.state_dict(), path, replace(card, network=changed))
            refused(path, match="may name nothing else")


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "header", "text"])
@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_a_damaged_file_is_refused(tmp_path, network, card, damage, ending):
    path = tmp_path / f"damaged.{ending}"
    save = save_weights if ending == "pt" else pretrained.write_safetensors
    save(network.state_dict(), path, card)
    whole = path.read_bytes()
    kinds = {"cut": whole[: len(whole) // 2], "garbage": bytes(range(256)) * 20, "empty": b"", "text": b"<html></html>"}
    path.write_bytes(kinds.get(damage, b"\xff" * 16 + whole[16:]))
    refused(path, match=r"damaged\.")


@pytest.mark.parametrize("card_text", ["{", "[]", "{}", '{"classes": 3}'])
def test_a_card_that_is_none_is_refused(tmp_path, network, card_text):
    save_file(network.state_dict(), tmp_path / "odd.safetensors", {CARD: card_text})
    refused(tmp_path / "odd.safetensors", match="its card cannot be read")


@pytest.mark.parametrize("name", ["nowhere.pt", "nowhere", "a/b.pt", "a/b/c", "https://example.org/x"])
def test_a_name_that_is_nothing_is_refused_without_asking_the_hub(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_: pytest.fail("the hub was asked"))
    refused(name, match="no such weights")


def test_a_folder_without_weights_is_refused(tmp_path):
    refused(tmp_path, match=r"a folder without model\.safetensors")


# The hub itself is no part of the tests: a server on this machine answers in its place.


class Hub(http.server.BaseHTTPRequestHandler):
    """Serves ``served`` as the one file of the repository ``somebody/student``."""

    served = b""

    def do_GET(self) -> None:
        found = self.path == "/somebody/student/resolve/main/model.safetensors"
        self.send_response(200 if found else 404)
        if found:
            self.send_header("ETag", f'"{hashlib.sha256(self.served).hexdigest()}"')
            self.send_header("X-Repo-Commit", "0" * 40)
        else:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", str(len(self.served) if found else 0))
        self.end_headers()
        if found and self.command == "GET":
            self.wfile.write(self.served)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[type[Hub]]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    at(f"http://127.0.0.1:{server.server_port}", tmp_path, monkeypatch)
    yield Hub
    server.shutdown()
    server.server_close()


def at(address: str, cache: Path, monkeypatch) -> None:
    """Let the hub be at an address, with nothing in the cache and no pause between attempts."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def test_a_repository_is_downloaded_once(tmp_path, hub, network, card, monkeypatch):
    save_pretrained(network, card, tmp_path / "local")
    hub.served = (tmp_path / "local" / "model.safetensors").read_bytes()
    found, read = load_streaming("somebody/student")
    assert read == card and same_weights(found, network)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert same_weights(load_streaming("somebody/student")[0], network)


def test_a_repository_that_is_not_there_is_refused(hub):
    with pytest.raises(UserError, match=r"nobody/student: the hub cannot be used .*check the name"):
        weights_file("nobody/student")


def test_without_a_connection_a_repository_is_refused(tmp_path, monkeypatch, network, card):
    at("http://127.0.0.1:9", tmp_path, monkeypatch)
    with pytest.raises(UserError, match=r"somebody/student: neither a file or folder here nor on the hub"):
        load_streaming("somebody/student")
    with pytest.raises(UserError, match=r"somebody/student: the hub cannot be used"):
        push_to_hub(network, card, "somebody/student")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"somebody/student: neither a file or folder here nor on the hub"):
        load_streaming("somebody/student")


def test_without_huggingface_hub_the_way_to_get_it_is_named(monkeypatch, network, card):
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: None)
    for call in (lambda: load_streaming("somebody/student"), lambda: push_to_hub(network, card, "somebody/student")):
        with pytest.raises(UserError, match=r"pip install 'onlooker\[hub\]'"):
            call()


def test_what_is_pushed_is_what_a_folder_holds(monkeypatch, network, card):
    made, sent = [], {}

    def upload(self, folder_path, repo_id, commit_message):
        sent[repo_id] = load_streaming(folder_path)
        assert sorted(path.name for path in Path(folder_path).iterdir()) == ["README.md", "model.safetensors"]

    def create(self, name, private, exist_ok):
        made.append((name, private, exist_ok))
        return f"https://huggingface.co/{name}"

    monkeypatch.setattr(HfApi, "create_repo", create)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    assert push_to_hub(network, card, "somebody/student") == "https://huggingface.co/somebody/student"
    assert made == [("somebody/student", True, True)]
    found, read = sent["somebody/student"]
    assert read == card and same_weights(found, network)
