"""Files of objects on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from lightning_modules.command_line.config_files import with_whole_files
from lightning_modules.networks.layers.trunk_size import TUBELET


class Wheel:
    def __init__(self, size: int, spokes: int = 32) -> None:
        pass


class Bicycle:
    def __init__(self, wheel: Wheel, name: str = "roadster", gears: tuple[int, ...] = (1, 2), bell: object = TUBELET):
        pass


WHEEL, BICYCLE = (f"{__name__}.{kind.__name__}" for kind in (Wheel, Bicycle))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "small.yaml").write_text(yaml.safe_dump({"class_path": WHEEL, "init_args": {"size": 20}}))
    bicycle = {"class_path": BICYCLE, "init_args": {"wheel": "wheels/small.yaml", "name": "folding"}}
    (tmp_path / "bicycle.yaml").write_text(yaml.safe_dump(bicycle))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": bicycle}))
    (tmp_path / "unknown.yaml").write_text(yaml.safe_dump({"class_path": "nowhere.Tandem"}))
    return tmp_path


@pytest.mark.parametrize("form", ["--model={}", "--model {}"])
def test_a_file_says_the_defaults_too_also_of_objects_inside_it(folder, form):
    *key, told = with_whole_files(form.format(folder / "bicycle.yaml").split(" "))
    told = told.removeprefix("--model=")
    assert key == ([] if "=" in form else ["--model"])
    assert json.loads(told) == {
        "class_path": BICYCLE,
        "init_args": {
            "wheel": {"class_path": WHEEL, "init_args": {"size": 20, "spokes": 32}},
            "name": "folding",
            "gears": [1, 2],
            "bell": TUBELET,
        },
    }


def test_what_has_no_default_is_left_for_the_parser_to_ask_for(folder):
    (folder / "wheels" / "small.yaml").write_text(yaml.safe_dump({"class_path": WHEEL}))
    (told,) = with_whole_files([f"--wheel={folder / 'wheels' / 'small.yaml'}"])
    assert json.loads(told.removeprefix("--wheel="))["init_args"] == {"spokes": 32}


def test_anything_else_stays_as_it_is(folder):
    arguments = [
        "fit",
        "--config",
        str(folder / "config.yaml"),
        f"--config={folder / 'bicycle.yaml'}",
        f"--trainer.callbacks+={folder / 'bicycle.yaml'}",
        f"--model={folder / 'unknown.yaml'}",
        f"--model={folder / 'missing.yaml'}",
        f"--data={folder / 'config.yaml'}",
        "--name=a.yaml",
        "--flag",
    ]
    assert with_whole_files(arguments) == arguments
