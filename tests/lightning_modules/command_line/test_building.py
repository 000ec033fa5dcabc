"""Errors of constructors are reported with the key; a bug keeps its traceback."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, ProgressBar

from callbacks.benchmark import BenchmarkTable
from datamodules.errors import UserError
from datamodules.frames.store import DecodedFrames
from lightning_modules.command_line.building import built_from
from lightning_modules.command_line.settings import Settings
from lightning_modules.command_line.switches import possible_callbacks
from lightning_modules.networks.weights.loading import save_weights
from tests.lightning_modules.command_line.command_line import EVAD, ROOT, CommandLine

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
NETWORK = "model.init_args.network.init_args"


@pytest.fixture(scope="module")
def command_line() -> CommandLine:
    return CommandLine()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argument", "line"),
    [
        (f"{NETWORK}.backbone.init_args.size.dim=130", "dim=130 does not divide into num_heads=4"),
        ("data.past_frames=9", "past_frames must lie within 1..num_frames (8), got 9"),
        ("data.source.seed=-1", "seed must not be negative, got -1"),
        ("model.detection.metric.iou_threshold=3", "iou_threshold must be in (0, 1], got 3.0"),
        ("trainer.max_time=banana", "`Timer(duration='banana')` is not a valid duration."),
        ("trainer.devices=3x", "`devices` selected with `CPUAccelerator` should be an int > 0."),
        ("trainer.accelerator=gpuu", "You selected an invalid accelerator name: `accelerator='gpuu'`."),
        ("trainer.strategy=ddpp", "You selected an invalid strategy name: `strategy='ddpp'`."),
        ("trainer.limit_train_batches=1.5", "You have passed invalid value 1.5 for limit_train_batches"),
        ("trainer.val_check_interval=often", "Invalid time format for `val_check_interval`: 'often'."),
        ("trainer.logger=CometLogger", "comet-ml is not installed; pip install comet-ml"),
        ("trainer.precision=64-true", "64-true is not supported: networks keep their weights in float32; set it to 32"),
        ("trainer.precision=bf16-true", "bf16-true is not supported: networks keep their weights in float32; set it"),
    ],
)
def test_what_is_refused_stands_with_its_key(command_line, argument, line):
    with pytest.raises(UserError) as error:
        command_line.build("fit", EVAD, "--trainer.accelerator=cpu", f"--{argument}")
    assert str(error.value).startswith(f"--{argument.partition('=')[0]}: {line}")


@pytest.mark.slow
@pytest.mark.parametrize("argument", ["start_from", "teacher_weights"])
def test_a_file_that_is_not_there_stands_with_the_key_that_names_it(command_line, argument, tmp_path):
    missing = str(tmp_path / "absent.pt")
    names = {"start_from": "teacher", "teacher_weights": str(ROOT / "results" / "weights" / "evad_16f.pt")}
    given = [f"--model.{name}={value}" for name, value in (names | {argument: missing}).items()]
    config = f"--config={ROOT / 'configs' / 'distill_dsta.yaml'}"
    with pytest.raises(UserError) as refused:
        command_line.build("fit", config, "--trainer.accelerator=cpu", *given)
    assert str(refused.value).startswith(f"--model.{argument}: no weights at {missing}")


@pytest.mark.parametrize("prefix", ["data", "data.init_args"])
@pytest.mark.parametrize("value", [" null", "=null"])
def test_null_is_nothing_within_an_objects_settings_too(command_line, prefix, value):
    """And no folder of the name "None"."""
    given = [f"--{prefix}.frames.cache{value}", f"--{prefix}.loader.samples_per_epoch{value}"]
    arguments = [part for argument in given for part in argument.split(" ")]
    data = command_line.build("fit", EVAD, "--trainer.accelerator=cpu", *arguments).datamodule
    assert type(data.store) is DecodedFrames and data.loader.samples_per_epoch is None


@pytest.mark.slow
def test_what_a_students_settings_refuse_stands_with_its_key(command_line):
    config = f"--config={ROOT / 'configs' / 'dsta.yaml'}"
    with pytest.raises(UserError, match=r"model\.detection: delays must be different .* got \[1, 1\]"):
        command_line.build("fit", config, "--trainer.accelerator=cpu", "--model.detection.scored_delays=[1, 1]")


@pytest.mark.parametrize("part", ["rgb", "flow"])
def test_of_two_networks_of_one_class_the_refused_one_is_named(command_line, part):
    """A system of two streams has two detectors of one class; its network is one of three types."""
    config = f"--config={ROOT / 'configs' / 'two_stream.yaml'}"
    with pytest.raises(UserError, match=rf"^--model\.network\.{part}\.head\.pyramid\.dim: dim=63 does not divide into"):
        command_line.build("test", config, f"--model.network.{part}.head.pyramid.dim=63")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("accelerator", ["gpu", "cuda"])
def test_a_gpu_that_is_not_there_is_refused_before_anything_is_built(command_line, accelerator):
    with pytest.raises(UserError, match=r"^--trainer\.accelerator: .* set it to auto or cpu$"):
        command_line.read("fit", EVAD, f"--trainer.accelerator={accelerator}")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which half precision suits")
@pytest.mark.parametrize("precision", ["16-mixed", "16-true"])
def test_half_precision_on_a_cpu_is_refused_with_the_way_out(command_line, precision):
    with pytest.raises(UserError, match=r"set --trainer\.precision=bf16-mixed"):
        command_line.build("fit", EVAD, f"--trainer.precision={precision}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("switch", "without"),
    [
        ("enable_progress_bar", ProgressBar),
        ("enable_checkpointing", ModelCheckpoint),
        ("logger", LearningRateMonitor),
    ],
)
def test_what_a_switch_turns_off_takes_along_what_needs_it_and_nothing_else(command_line, switch, without):
    kinds = {}
    for value in ("true", "false"):
        trainer = command_line.build("fit", EVAD, f"--trainer.{switch}={value}").trainer
        kinds[value] = {type(callback) for callback in trainer.callbacks}
    gone = kinds["true"] - kinds["false"]
    assert len(gone) == 1 and issubclass(*gone, without)
    assert kinds["false"] < kinds["true"] and BenchmarkTable in kinds["false"]


def test_a_single_callback_is_a_list_of_one():
    config = Namespace(callbacks=BenchmarkTable(), enable_progress_bar=False, enable_checkpointing=None, logger=None)
    assert [type(callback) for callback in possible_callbacks(config)] == [BenchmarkTable]


@pytest.mark.parametrize(
    ("write", "line"),
    [
        (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "{}: is a Git-LFS pointer"),
        (lambda path: path.write_bytes(b""), "{}: is empty"),
        (lambda path: path.mkdir(), "{}: is a folder"),
        (lambda path: None, "--model.weights: no weights at {}; name an existing file"),
        (lambda path: save_weights({"a": torch.ones(1)}, path), "{}: the weights do not fit the network; missing"),
    ],
    ids=["git-lfs", "empty", "folder", "absent", "another network's"],
)
def test_weights_that_are_none_are_refused_by_the_files_name(command_line, write, line, tmp_path):
    write(tmp_path / "weights.pt")
    with pytest.raises(UserError) as error:
        command_line.build("fit", EVAD, "--model.weights=weights.pt")
    assert str(error.value).startswith(line.format("weights.pt"))


@pytest.mark.parametrize(
    ("write", "line"),
    [
        (lambda path: save_weights({"a": torch.ones(1)}, path), "--ckpt_path: {} holds weights alone, no checkpoint"),
        (lambda path: path.write_bytes(b"<html></html>"), "{}: is a web page, not checkpoint"),
        (lambda path: path.mkdir(), "{}: is a folder"),
        (lambda path: None, "no checkpoint at {}"),
    ],
    ids=["weights", "web page", "folder", "absent"],
)
@pytest.mark.parametrize("command", ["fit", "test"])
def test_a_checkpoint_that_is_none_is_refused_before_anything_is_built(command_line, command, write, line, tmp_path):
    write(tmp_path / "last.ckpt")
    cli = command_line.read(command, EVAD, "--ckpt_path=last.ckpt")
    with pytest.raises(UserError) as error:
        cli._parse_ckpt_path()
    assert str(error.value).startswith(line.format("last.ckpt"))


@pytest.mark.parametrize("word", ["best", "last"])
def test_words_for_checkpoints_of_a_run_under_way_are_refused(command_line, word):
    cli = command_line.read("test", EVAD, f"--ckpt_path={word}")
    with pytest.raises(UserError, match=rf"^--ckpt_path: {word} names a checkpoint of this very run"):
        cli._parse_ckpt_path()


SOURCE = """
class Thing:
    def __init__(self, size: int = 1, other: object = None) -> None:
        {body}
"""


@pytest.fixture
def build_thing(monkeypatch):
    """Build a class of one of our rooms, or of a library, from a config; its constructor does what is given."""

    def build(body: str, room: str = "lightning_modules", kind: str = "{}") -> None:
        module = ModuleType(f"{room}.planted")
        exec(compile(SOURCE.format(body=body), "planted.py", "exec"), vars(module))
        module.Thing.__module__ = module.__name__
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(sys.modules, room, sys.modules.get(room, ModuleType(room)))
        monkeypatch.setattr(sys.modules[room], "planted", module, raising=False)
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--thing", type=module.Thing if kind == "{}" else module.Thing | None)
        arguments = [f"--thing={module.__name__}.Thing", "--thing.init_args.size=3"]
        config = parser.parse_args(arguments)
        with built_from(config, Settings(arguments)):
            parser.instantiate_classes(config)

    return build


@pytest.mark.parametrize("kind", ["{}", "{} | None"])
@pytest.mark.parametrize("room", ["lightning_modules", "a_library"])
@pytest.mark.parametrize("error", ["ValueError", "TypeError"])
def test_a_constructors_own_refusal_is_the_users(build_thing, error, room, kind):
    with pytest.raises(UserError, match=r"^--thing\.init_args\.size: size must be even, got 3$"):
        build_thing(f"raise {error}(f'size must be even, got {{size}}')", room, kind)


@pytest.mark.parametrize("kind", ["{}", "{} | None"])
@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("int('x')", ValueError),
        ("size + None", TypeError),
        ("a, b = [1]", ValueError),
        ("{}[size]", KeyError),
        ("size.nothing", AttributeError),
        ("assert size == 4", AssertionError),
        ("raise RuntimeError(size)", RuntimeError),
        ("from lightning_modules import nothing_such", ImportError),
    ],
)
def test_a_bug_in_a_constructor_keeps_its_traceback(build_thing, body, error, kind):
    with pytest.raises(error) as raised:
        build_thing(body, kind=kind)
    assert not isinstance(raised.value, UserError)
    assert raised.traceback[-1].path == Path("planted.py") or str(raised.traceback[-1].path).endswith("planted.py")


def test_a_package_that_a_constructor_misses_is_named_with_what_brings_it(build_thing):
    with pytest.raises(UserError, match=r"^--thing: absent_package is not installed; pip install absent_package$"):
        build_thing("import absent_package.part")
