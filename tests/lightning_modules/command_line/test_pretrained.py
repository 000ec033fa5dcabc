"""Settings that ``predict`` takes from the card of its weights, and those that count before it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from datamodules.errors import UserError
from lightning_modules.command_line.pretrained import CONFIGS, with_card
from lightning_modules.networks.weights.configured import build_network
from lightning_modules.networks.weights.loading import save_weights
from lightning_modules.networks.weights.pretrained import save_pretrained
from tests.networks.weights.small import small_card, small_config

CONFIG_FILE = CONFIGS / "predict.yaml"

ROOT = Path(__file__).resolve().parents[3]
TOLD = {
    "--data.init_args.classes": ["sit", "stand", "walk"],
    "--data.init_args.frame_stride": 2,
    "--data.init_args.frame_rate": 16.0,
    "--data.init_args.short_side": 64,
}


@pytest.fixture(scope="module")
def config() -> dict:
    return small_config()


@pytest.fixture(scope="module")
def weights(config, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    network, card = build_network(config), small_card(config)
    save_weights(network.state_dict(), folder / "student.pt", card)
    save_weights(network.state_dict(), folder / "rateless.pt", replace(card, frame_rate=None))
    save_weights(network.state_dict(), folder / "plain.pt")
    save_pretrained(network, card, folder / "student")
    return folder


def told(arguments: list[str]) -> dict[str, object]:
    """The settings that the parser gets."""
    pairs = [argument.partition("=") for argument in with_card(arguments)[1:]]
    return {key: yaml.safe_load(value) for key, _, value in pairs}


@pytest.mark.parametrize("name", ["student.pt", "student", "student/model.safetensors"])
@pytest.mark.parametrize("form", ["=", " "])
def test_weights_and_a_source_are_a_whole_command(weights, config, name, form):
    given = [("--weights", str(weights / name)), ("--source", "film.mp4")]
    arguments = [f"{key}={value}" for key, value in given] if form == "=" else [part for pair in given for part in pair]
    found = told(["predict", *arguments])
    network = found.pop("--model.init_args.network")
    assert type(build_network(network)).__name__ == network["class_path"].rpartition(".")[2] == "StreamingDetector"
    file = weights / name / "model.safetensors" if name == "student" else weights / name
    assert found == {
        "--config": str(CONFIG_FILE),
        "--model.init_args.weights": str(file),
        "--data.init_args.source": "film.mp4",
        **TOLD,
    }


def test_what_is_given_comes_after_the_card(weights):
    options = ["--data.frame_stride=3", "--data.classes", "classes.txt", "--trainer.devices=1"]
    found = with_card(["predict", *options, "--weights", str(weights / "student.pt")])
    joined = ["--data.frame_stride=3", "--data.classes=classes.txt", "--trainer.devices=1"]
    assert found[-3:] == joined and found[1] == f"--config={CONFIG_FILE}"


@pytest.mark.parametrize("option", ["--model.weights", "--model.init_args.weights"])
def test_weights_for_the_config_bring_their_card(weights, option):
    found = told(["predict", f"--config={CONFIG_FILE}", f"{option}={weights / 'student.pt'}"])
    assert {key: found[key] for key in TOLD} == TOLD and "--model.init_args.network" in found


def test_the_config_alone_takes_the_card_of_its_weights(monkeypatch):
    monkeypatch.chdir(ROOT)
    found = told(["predict", f"--config={CONFIG_FILE}"])
    assert found["--data.init_args.classes"][0] == "sit_down" and found["--data.init_args.short_side"] == 128


def test_a_network_that_is_given_stays(weights):
    network = ["--model.init_args.network", "networks/tsa.yaml"]
    found = told(["predict", "--weights", str(weights / "student.pt"), *network])
    assert found["--model.init_args.network"] == "networks/tsa.yaml"
    assert {key: found[key] for key in TOLD} == TOLD
    plain = told(["predict", "--weights", str(weights / "plain.pt"), *network])
    assert plain.keys() == {"--config", "--model.init_args.weights", "--model.init_args.network"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["fit", "--config=a.yaml", "--weights=w.pt"],
        ["predict", "--config", "configs/distill_motion.yaml", "--ckpt_path", "a.ckpt"],
        ["predict", "--help"],
        ["--help"],
        [],
    ],
)
def test_other_commands_and_configs_are_left_alone(arguments, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = with_card(arguments)
    assert [part for argument in found for part in argument.split("=")] == [
        part for argument in arguments for part in argument.split("=")
    ]


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("plain.pt", "plain.pt: has no card that says how to build its network; give --model"),
        ("nowhere.pt", r"nowhere.pt: no such weights"),
        ("rateless.pt", "does not say the frame rate of the training videos; give --data.init_args.frame_rate"),
    ],
)
def test_weights_that_do_not_say_enough_are_refused_with_the_way_out(weights, name, match):
    with pytest.raises(UserError, match=match):
        with_card(["predict", "--weights", str(weights / name), "--source=film.mp4"])


def test_a_frame_rate_that_is_given_is_enough(weights):
    found = told(["predict", "--weights", str(weights / "rateless.pt"), "--data.frame_rate=25"])
    assert found["--data.frame_rate"] == 25 and "--data.init_args.frame_rate" not in found


def test_a_teachers_weights_are_refused():
    with pytest.raises(UserError, match="holds a EvadTeacher, no streaming detector; take a student's weights"):
        with_card(["predict", "--weights", str(ROOT / "results" / "weights" / "evad.pt")])


def test_a_source_without_weights_is_told_that_weights_are_missing():
    with pytest.raises(UserError, match=r"no weights are named; give --weights FILE"):
        with_card(["predict", "--source", "film.mp4"])


def test_weights_by_their_long_key_need_no_config_either(weights):
    film = ["--source", "film.mp4"]
    by_long_key = told(["predict", "--model.weights", str(weights / "student.pt"), *film])
    assert by_long_key.pop("--model.weights") == str(weights / "student.pt")
    assert by_long_key == told(["predict", "--weights", str(weights / "student.pt"), *film])


def test_the_card_of_a_configs_weights_is_read_by_the_short_form_of_config_too(weights, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"model": {"init_args": {"weights": str(weights / "student.pt")}}}))
    assert with_card(["predict", "-c", str(file)]) == with_card(["predict", "--config", str(file)])
