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


def test_files_that_a_config_names_and_overrides_are_part_of_it():
    assert stage_settings(STAGE, 0, {})["settings"] == {
        "trainer": {"max_epochs": 1, "max_steps": 3},
        "model": {"network": {"dim": 8}, "head": [1, 2]},
    }


def test_a_value_that_an_override_repeats_may_move_from_the_config():
    before = now(Stage(STAGE.config, {"model.network.dim": 16}))
    Path("configs/networks/tiny.yaml").write_text("dim: 9")
    assert now(Stage(STAGE.config, {"model.network.dim": 16})) == before
    Path("configs/networks/tiny.yaml").write_text("dim: 16")
    assert now(Stage(STAGE.config)) == before
    assert now(Stage(STAGE.config, {"trainer.max_steps": 3})) == now(Stage(STAGE.config, {"trainer": {"max_steps": 3}}))


def test_an_object_from_a_file_hides_what_the_config_says_of_it():
    Path("configs/head.yaml").write_text("{class_path: Head, init_args: {depth: 2, width: 4}}")
    Path("configs/other.yaml").write_text("{class_path: Head, init_args: {depth: 3}}")
    settings = stage_settings(Stage(STAGE.config, {"model.head": "configs/other.yaml"}), 0, {})["settings"]
    assert settings["model"]["head"] == {"class_path": "Head", "init_args": {"depth": 3}}
    settings = stage_settings(Stage(STAGE.config, {"model.head": {"init_args": {"depth": 3}}}), 0, {})["settings"]
    assert settings["model"]["head"]["init_args"] == {"depth": 3, "width": 4}


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
        "settings / model / network / dim: 8 -> 16",
        "settings / model / network / depth: null -> 2",
        "settings / trainer / max_steps: 3 -> 6",
    ]
    assert changes(old, old) == []
