"""A fault in a command line or a config is one line: where it stands, what it is, and what is nearest."""

from __future__ import annotations

from pathlib import Path

import pytest

from datamodules.errors import UsageError, shown_in_one_line
from lightning_modules.command_line.parser import wanted
from main import main
from tests.lightning_modules.command_line.command_line import EVAD, ROOT, CommandLine

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")  # where pytest has arguments itself
NETWORK = "model.init_args.network.init_args"


@pytest.fixture(scope="module")
def command_line(tmp_path_factory) -> CommandLine:
    return CommandLine()


def said(command_line: CommandLine, *arguments: str) -> str:
    with pytest.raises(UsageError) as error:
        command_line.read(*arguments)
    assert error.value.exit_status == 2
    return str(error.value)


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("trainer.max_epoks=3", "fit has no such key; did you mean --trainer.max_epochs?"),
        ("tainer.max_epochs=3", "fit has no such key; did you mean --trainer.max_epochs?"),
        ("max_epochs=3", "fit has no such key; did you mean --trainer.max_epochs?"),
        ("nam=x", "fit has no such key; did you mean --name?"),
        ("confg=x.yaml", "fit has no such key; did you mean --config?"),
        ("model.init_args.one_slot_untill=0.4", "ClipDetectionModule has no such key; did you mean one_slot_until?"),
        ("data.num_frame=8", "ClipDataModule has no such key; did you mean num_frames?"),
        (f"{NETWORK}.backbone.init_args.size.dimm=64", "VideoViT has no such key; did you mean size.dim?"),
        ("model.network.backbone.size.dimm=64", "VideoViT has no such key; did you mean size.dim?"),
        ("model.netwrk.dim=64", "ClipDetectionModule has no such key; did you mean network.dim?"),
        ("model.init_arg.one_slot_until=0", "ClipDetectionModule has no such key; did you mean init_args.one_slot_unt"),
        ("model.optimizer.lrr=1", "AdamW has no such key; did you mean lr?"),
        (
            "model.detection.metric.protocoll=ava",
            "ClipDetectionModule has no such key; did you mean detection.metric.p",
        ),
        ("trainer.callbacks.foldr=x", "PredictionWriter has no such key; did you mean folder?"),
        ("data.source.xyzzy=1", "Puppets has no such key; there are root, size, seed"),
    ],
)
def test_a_misspelt_key_is_named_where_it_stands_with_the_nearest(command_line, argument, line):
    key = argument.partition("=")[0]
    assert said(command_line, "fit", EVAD, f"--{argument}").startswith(f"--{key}: {line}")


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        (f"{NETWORK}.backbone.init_args.size.dim=wide", "must be a whole number, got 'wide'"),
        (f"{NETWORK}.backbone.init_args.size.dim=null", "must be a whole number, got 'null'"),
        (f"{NETWORK}.backbone.init_args.size.pyramid_layers=[1,x]", "must be a whole number, got '[1,x]'"),
        (f"{NETWORK}.backbone.init_args.keep_rates=[1,2]", "must be a mapping (dict[int, float]) or null, got '[1,2]'"),
        (
            f"{NETWORK}.backbone.init_args.key_order=publishd",
            "is 'publishd', none of position, as_published; did you mean as_published?",
        ),
        ("model.optimizer.lr=fast", "must be a number or a Tensor, got 'fast'"),
        ("trainer.max_epochs=3.5", "must be a whole number or null, got '3.5'"),
        ("trainer.enable_progress_bar=maybe", "must be true or false or null, got 'maybe'"),
        ("trainer.limit_train_batches=half", "must be a whole number of batches or a share of them or null, got 'half"),
        ("trainer.precision=bf16mixed", "is 'bf16mixed', none of 64, 32, 16, transformer-engine, "),
        ("data.source.size=tinyy", "is 'tinyy', none of tiny, small, full; did you mean tiny?"),
    ],
)
def test_a_value_of_another_kind_is_shown_with_what_is_wanted(command_line, argument, line):
    key = argument.partition("=")[0]
    assert said(command_line, "fit", EVAD, f"--{argument}").startswith(f"--{key}: {line}")


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("model=ClipDetectionModul", "there is no class 'ClipDetectionModul'; did you mean ClipDetectionModule?"),
        ("model=datamodules.clip.ClipDataModule", "datamodules.clip.ClipDataModule is no LightningModule"),
        (
            "model.network.class_path=lightning_modules.networks.detection.evad.Evad",
            "lightning_modules.networks.detection.evad has no ",
        ),
        ("model.optimizer.class_path=torch.optim.Adm", "torch.optim has no Adm; did you mean Adam?"),
        ("data.source=datamodules.puppets.Puppet", "datamodules.puppets has no Puppet; did you mean Puppets?"),
        ("trainer.callbacks+=DetectionFil", "there is no class 'DetectionFil'; did you mean DetectionFile?"),
        ("trainer.logger=absent_package.Logger", "absent_package is not installed; pip install absent_package"),
        ("data.source=nowhere.yaml", "there is no file nowhere.yaml that describes an object"),
    ],
)
def test_a_class_that_is_not_there_is_named_with_the_nearest(command_line, argument, line):
    key = argument.partition("=")[0].rstrip("+")
    assert said(command_line, "fit", EVAD, f"--{argument}").startswith(f"--{key}: {line}")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["fitt", EVAD],
            "command: 'fitt' is none of fit, validate, test, predict, check, score, analyse, export, maps, serve; did",
        ),
        (["fit"], "there are no model and no data; give --config with one of the files in configs"),
        (["fit", EVAD, "extra"], "extra stands alone; write settings as --key value"),
        (["fit", EVAD, "--data.init_args.num_workers"], "--data.init_args.num_workers: has no value; write --key"),
        (
            [],
            "no command is given, one of fit, validate, test, predict, check, score, analyse, export, maps, serve; "
            "main.py --help explains them",
        ),
        ([EVAD, "fit"], "settings stand before the command; write main.py COMMAND --config FILE ..."),
        (["score", EVAD], "--predictions: must be given"),
        (["score", EVAD, "--predictions=x", "--split=tst"], "--split: is 'tst', none of val, test; did you mean test?"),
        (["check", EVAD, "--every_frme=true"], "--every_frme: check has no such key; did you mean --every_frame?"),
        (["export", EVAD, "--image_size=3"], "--image_size: must be a list (tuple[int, int]) or null, got '3'"),
        (
            ["fit", EVAD, "--model.training.schedule=WarmupSteps"],
            "--model.training.schedule.milestones: must be given to WarmupSteps",
        ),
        (["fit", EVAD, "--trainer.accumulate_grad_batches=0"], "--trainer.accumulate_grad_batches: must be at least 1"),
        (["fit", EVAD, "--seed_everything=-1"], "--seed_everything: must lie within 0..4294967295, got -1"),
    ],
)
def test_a_command_that_is_not_complete_is_told_what_is_missing(command_line, arguments, line):
    with pytest.raises(ValueError) as error:
        command_line.read(*arguments)
    assert str(error.value).startswith(line)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (("frame_stride:", "frame_strid:"), "17: data.init_args.frame_strid: ClipDataModule has no such key; did you"),
        (("trainer:", "triner:"), "21: triner.max_epochs: fit has no such key; did you mean trainer.max_epochs?"),
        (("max_epochs: 10", "max_epochs: 3.5"), "21: trainer.max_epochs: must be a whole number or null, got '3.5'"),
        (("max_epochs:", "max_epoch:"), "21: trainer.max_epoch: fit has no such key; did you mean trainer.max_epochs?"),
        (("  init_args:", "  init_arg:"), "6: model.init_arg: beside class_path only init_args may stand; did you"),
        (("  precision:", "  max_epochs:"), "22: trainer.max_epochs: stands here a second time; delete one of them"),
        (("evad_tiny", "evad_tinny"), "7: model.init_args.network: there is no file"),
        (("limit_val_batches: 24", "limit_val_batches: ["), "24: is no YAML: while parsing a flow node"),
        (("puppets_full.yaml", "puppets_typo.yaml"), "configs/data/puppets_typo.yaml:4: data.init_args.source."),
    ],
)
def test_what_is_wrong_in_a_file_is_placed_at_its_line(command_line, change, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs/data").mkdir(parents=True)
    text = (ROOT / "configs" / "evad.yaml").read_text().replace("networks/", f"{ROOT}/configs/networks/")
    (tmp_path / "configs/data/puppets_full.yaml").write_text((ROOT / "configs/data/puppets_full.yaml").read_text())
    typo = "# Twice.\nclass_path: datamodules.puppets.Puppets\ninit_args:\n  sise: full\n"
    (tmp_path / "configs/data/puppets_typo.yaml").write_text(typo)
    assert change[0] in text
    (tmp_path / "configs/mine.yaml").write_text(text.replace(*change))
    place = line if line.startswith("configs") else f"configs/mine.yaml:{line}"
    assert said(command_line, "fit", "--config=configs/mine.yaml").startswith(place)


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("absent.yaml", None, "absent.yaml: there is no such config"),
        ("evvad.yaml", None, "evvad.yaml: there is no such config; did you mean evad.yaml?"),
        (".", None, ".: cannot be read: Is a directory"),
        ("empty.yaml", b"", "empty.yaml: is empty; write key: value"),
        ("text.yaml", b"just text", "text.yaml: holds no settings; write key: value"),
        ("latin.yaml", "name: Küche\n".encode("latin-1"), "latin.yaml: is not text in UTF-8; save it in this encoding"),
        ("binary.yaml", b"\x00\x01", "binary.yaml: is no YAML: "),
    ],
)
def test_what_is_no_config_is_refused_by_its_name(command_line, name, content, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("evad.yaml").touch()
    if content is not None:
        Path(name).write_bytes(content)
    assert said(command_line, "fit", "--config", name).startswith(line)


def test_an_argument_before_the_config_that_sets_it_too_is_refused(command_line):
    """jsonargparse lets the config hold, without a word."""
    line = said(command_line, "fit", "--trainer.max_epochs=4", EVAD)
    assert line.startswith("--trainer.max_epochs: ") and line.endswith(
        "comes after it, sets it again; put --config first"
    )
    assert command_line.read("fit", "--name=x", EVAD).config.fit.name == "x"


def test_a_complaint_is_one_line_on_the_terminal_without_usage_text(capsys, monkeypatch):
    monkeypatch.delenv("ONLOOKER_DEBUG", raising=False)
    with pytest.raises(SystemExit) as end, shown_in_one_line():
        main(["fit", EVAD, "--trainer.max_epoks=3"])
    assert end.value.code == 2
    line = "error: --trainer.max_epoks: fit has no such key; did you mean --trainer.max_epochs?\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("value", ["1", "1.0"])
@pytest.mark.parametrize("form", ["argument", "file"])
def test_a_limit_of_one_is_one_batch_and_one_point_nought_is_all(command_line, value, form, tmp_path):
    names = [f"limit_{stage}_batches" for stage in ("train", "val", "test", "predict")]
    names += ["overfit_batches", "val_check_interval"]
    arguments = [f"--trainer.{name}={value}" for name in names]
    if form == "file":
        (tmp_path / "limits.yaml").write_text("trainer:\n" + "".join(f"  {name}: {value}\n" for name in names))
        arguments = [f"--config={tmp_path / 'limits.yaml'}"]
    trainer = command_line.read("fit", EVAD, *arguments).config.fit.trainer
    expected = float(value) if "." in value else int(value)
    assert [(type(trainer[name]), trainer[name]) for name in names] == [(type(expected), expected)] * len(names)
    text = command_line.cli.parser.dump(command_line.cli.config)
    assert text.count(f": {value}\n") >= len(names)  # what a run records, too


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        ("<class 'int'>, <class 'NoneType'>", (["a whole number", "null"], [])),
        ("typing.Literal['a', 'b'], typing.Literal[64]", ([], ["a", "b", "64"])),
        ("dict[str, list[int]], tuple[int]", (["a mapping (dict[str, list[int]])", "a list (tuple[int])"], [])),
        ("<class 'datamodules.clip.ClipDataModule'>", (["a ClipDataModule"], [])),
        ("<class 'float'>, <class 'int'>, <class 'bool'>", (["a number", "true or false"], [])),
    ],
)
def test_types_are_put_into_words(types, expected):
    assert wanted(types) == expected


def test_a_film_in_place_of_an_object_is_told_from_a_config(command_line, tmp_path):
    film = tmp_path / "film.mp4"
    film.write_bytes(b"\x00\x00\x00\x20ftypisom\xae\xff")
    line = said(command_line, "fit", EVAD, f"--data.init_args.source={film}")
    assert line.startswith(f"--data.init_args.source: {film} is no text, so it describes no object; name a class")
