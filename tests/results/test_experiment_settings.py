"""What a run depends on: the values of its configs and of the files that they name."""

from pathlib import Path

import pytest

from results.experiment_list import Stage
from results.experiment_settings import changes, fingerprint, stage_settings

STAGE = Stage("configs/mine.yaml", {"trainer.max_steps": 3})


@pytest.fixture(autouse=True)
def configs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("configs/networks").mkdir(parents=True)
    Path("configs/trainer").mkdir()
    Path("configs/mine.yaml").write_text("model: {network: networks/tiny.yaml, head: configs/head.yaml}")
    Path("configs/networks/tiny.yaml").write_text("dim: 8")
    Path("configs/head.yaml").write_text("[1, 2]")
    Path("configs/trainer/defaults.yaml").write_text("trainer: {max_epochs: 1}")


def now(stage=STAGE, seed=0, needs=None):
    return fingerprint(stage_settings(stage, seed, needs or {}))


def test_files_that_a_config_names_are_part_of_it():
    settings = stage_settings(STAGE, 0, {})
    assert settings["config"] == {"model": {"network": {"dim": 8}, "head": [1, 2]}}


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("configs/mine.yaml", "model: {network: networks/tiny.yaml, head: null}"),
        ("configs/networks/tiny.yaml", "dim: 9"),
        ("configs/trainer/defaults.yaml", "trainer: {max_epochs: 2}"),
    ],
)
def test_a_value_that_changes_is_noticed(file, text):
    before = now()
    Path(file).write_text(text)
    assert now() != before


def test_comments_and_layout_are_not_part_of_it():
    before = now()
    Path("configs/networks/tiny.yaml").write_text("# as small as can be\ndim:    8\n")
    assert now() == before


def test_seed_overrides_and_what_is_needed_are_part_of_it():
    others = [now(seed=1), now(Stage(STAGE.config, {"trainer.max_steps": 4})), now(needs={"teacher": "abc"})]
    assert len({now(), *others}) == 4


def test_a_change_is_told_with_its_place_and_both_values():
    old = stage_settings(STAGE, 0, {"teacher": "abc"})
    Path("configs/networks/tiny.yaml").write_text("{dim: 16, depth: 2}")
    new = stage_settings(Stage(STAGE.config, {"trainer.max_steps": 6}), 0, {"teacher": "abc"})
    assert changes(old, new) == [
        "config / model / network / dim: 8 -> 16",
        "config / model / network / depth: null -> 2",
        "overrides / trainer.max_steps: 3 -> 6",
    ]
    assert changes(old, old) == []
