"""The command line: every experiment parses and fits for two batches, and what a user gets wrong is named."""

from __future__ import annotations

import json
import re
from itertools import takewhile
from pathlib import Path

import pytest
import torch
import yaml

from datamodules.errors import UserError
from lightning_modules.command_line.precision import CHOSEN
from lightning_modules.networks.weights.configured import network_of
from lightning_modules.networks.weights.loading import save_weights
from main import main
from tests.datamodules.miniature_ava import SCORED, write_ava
from tests.datamodules.miniature_ava import arguments as ava_arguments
from tests.lightning_modules.command_line.command_line import CommandLine

ROOT = Path(__file__).resolve().parent.parent
NOTHING_TO_TRAIN = {ROOT / "configs" / f"{name}.yaml" for name in ("predict", "serve", "two_stream")}
CONFIGS = sorted(set((ROOT / "configs").glob("*.yaml")) - NOTHING_TO_TRAIN)
pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")  # where pytest has arguments itself
FULL_SIZE = [config for config in CONFIGS if "_vit_" in config.stem]
TEMPORAL = [config for config in CONFIGS if "SegmentDataModule" in config.read_text()]  # test_temporal_command_line.py
RUNNABLE = [config for config in CONFIGS if config not in [*FULL_SIZE, *TEMPORAL]]
AVA_RECIPE = ROOT / "configs" / "evad_vit_b_ava.yaml"
VIT_L = [
    f"--model.network={ROOT / 'configs' / 'networks' / 'evad_vit_l.yaml'}",
    *("--model.loss.action_weight=6", "--model.optimizer.lr=1e-5"),
    *("--model.training.schedule.warmup_from=0.25", "--data.loader.batch_size=1", "--name=evad_vit_l_ava"),
]
"""Arguments that make the recipe for AVA that of ViT-L, as its head says."""
TESTED = ("evad", "distill_dsta")
"""Those of them that are also tested and predict: a clip detector and a student."""
VIDEOS = {"ava": "data/ava/frames", "ucf101_24": "data/ucf101_24/videos", "jhmdb": "data/jhmdb/Frames"}
"""Where the recipes for published data look for them."""
ANNOTATION = {"ava": "label map", "ucf101_24": "pyannot.pkl", "jhmdb": "JHMDB-GT.pkl"}
SOURCES = {"ava": "Ava", "ucf101_24": "UCF101_24", "jhmdb": "JHMDB"}


@pytest.fixture(scope="module")
def puppets(tiny_puppets, tmp_path_factory) -> Path:
    """The tiny Puppets data, with a cache and a teacher's weights beside them."""
    folder = tmp_path_factory.mktemp("puppets")
    (folder / "tiny").symlink_to(tiny_puppets / "tiny")
    save_weights(network_of(ROOT / "configs" / "networks" / "evad_tiny.yaml", 10).state_dict(), folder / "evad.pt")
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Runs, results and data go to the working directory: an empty one. What ``main`` sets is set back."""
    monkeypatch.chdir(tmp_path)
    precision = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(precision)


def printed_config(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--print_config"])
    assert end.value.code == 0
    return capsys.readouterr().out


def on_puppets(config: Path, puppets: Path) -> list[str]:
    """Arguments that let an experiment run for a moment on the tiny data."""
    text = config.read_text()
    init = "--data.init_args"
    small = {"loader.batch_size": 2, "loader.num_workers": 0}
    small |= {"lanes": 2, "chunk_frames": 2} if "StreamDataModule" in text else {"loader.eval_batch_size": 2}
    arguments = [f"--config={config}", f"{init}.frames.cache={puppets / 'cache'}"]
    arguments += [f"{init}.{name}={value}" for name, value in small.items()]
    arguments += ["--trainer.precision=32-true", "--trainer.enable_progress_bar=false"]
    if "own_videos" in text:
        # The same videos, read as somebody's own.
        own = {"videos": "tiny/videos/train", "annotations": "tiny/train.csv", "classes": "tiny/classes.txt"}
        arguments += [f"{init}.source.init_args.{name}={puppets / path}" for name, path in own.items()]
    else:
        arguments += [f"{init}.source.init_args.root={puppets}", f"{init}.source.init_args.size=tiny"]
    for name in ("teacher_weights", "start_from", "weights"):
        if f" {name}:" in text:
            arguments.append(f"--model.init_args.{name}={puppets / 'evad.pt'}")
    return arguments


@pytest.fixture(scope="module")
def command_line() -> CommandLine:
    return CommandLine()


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.stem)
def test_a_config_parses_and_what_is_printed_of_it_parses_to_the_same(config, command_line, tmp_path, capsys):
    def printed(file: Path | str) -> str:
        with pytest.raises(SystemExit) as end:
            command_line.read("fit", f"--config={file}", "--print_config")
        assert end.value.code == 0
        return capsys.readouterr().out

    first = printed(config)
    (tmp_path / "printed.yaml").write_text(first)
    assert printed("printed.yaml") == first


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.stem)
def test_a_config_begins_with_what_it_is_and_the_command_that_runs_it(config):
    comment = list(takewhile(lambda line: line.startswith("# "), config.read_text().splitlines()))
    assert len(comment) >= 2
    assert comment[-1].startswith(f"# python main.py fit --config configs/{config.name}")


@pytest.mark.slow
@pytest.mark.parametrize("config", FULL_SIZE, ids=lambda config: config.stem)
def test_a_config_of_full_size_is_built_and_then_names_what_it_finds_missing(config, monkeypatch):
    """The number of classes is what a network asks of the data, so annotation is missed first."""
    data = config.stem.partition("_vit_b_")[2]
    with pytest.raises(UserError, match=ANNOTATION[data]):
        main(["fit", f"--config={config}"])
    monkeypatch.setattr(f"datamodules.annotations.{data}.{SOURCES[data]}.class_names", lambda _: ("walk", "run"))
    missing = VIDEOS[data]
    if "distill" in config.stem:
        missing = f"no weights at runs/evad_vit_b_{data}/latest/checkpoints/last.ckpt"
    # Built without memory; at its end the Trainer takes the weights to the CPU, which these cannot follow.
    monkeypatch.setattr(torch.nn.Module, "cpu", lambda module: module)
    with torch.device("meta"), pytest.raises(UserError, match=missing):
        main(["fit", f"--config={config}"])


@pytest.mark.slow
def test_the_ava_recipes_are_those_of_evads_authors(capsys):
    """`EVAD.md`, sections 6, 7, 9 and 10; what differs between the sizes is in the table."""
    for changes, lr, clips, action_weight, drop_path in zip(
        ((), VIT_L), (2.5e-5, 1e-5), (16, 8), (12, 6), (0.1, 0.2), strict=True
    ):
        printed = yaml.safe_load(printed_config(capsys, "fit", f"--config={AVA_RECIPE}", *changes))
        model, data = printed["model"]["init_args"], printed["data"]["init_args"]
        expected = {"num_frames": 16, "frame_stride": 4, "past_frames": None, "short_side": 288, "max_long_side": 1333}
        expected |= {"interpolation": "bilinear", "horizontal_flip": 0.5, "scale_range": [1, 1], "brightness": 0}
        expected |= {"contrast": 0, "saturation": 0, "samples_per_epoch": None, "batch_size": clips // 8}
        flat = data | data["frames"] | data["augmentation"] | data["loader"]
        assert {name: flat[name] for name in expected} == expected
        optimizer = model["optimizer"]["init_args"]
        assert (optimizer["lr"], optimizer["weight_decay"]) == (lr, 1e-4)
        assert (list(optimizer["betas"]), optimizer["eps"]) == ([0.9, 0.999], 1e-8)
        training, detection = model["training"], model["detection"]
        schedule = training["schedule"]["init_args"]
        assert schedule["warmup_from"] * lr == pytest.approx(2.5e-6)
        assert (schedule["warmup_epochs"], schedule["milestones"]) == (2, {"5": 0.1, "8": 0.01})
        assert (training["head_lr_multiplier"], model["one_slot_until"]) == (8, 0)
        assert (detection["score"], detection["person_threshold"]) == ("action", 0.7)
        assert model["loss"]["init_args"]["action_weight"] == action_weight
        network = model["network"]["init_args"]
        decoder = network["head"]["init_args"]["decoder"]["init_args"]
        assert (network["backbone"]["init_args"]["drop_path_rate"], decoder["drop_path_rate"]) == (drop_path, 0.1)
        trainer = printed["trainer"]
        assert (trainer["max_epochs"], trainer["gradient_clip_val"], trainer["precision"]) == (12, None, "32-true")


SAVING_MEMORY = (
    "--model.init_args.network.init_args.backbone.init_args.checkpoint_blocks=true",
    "--trainer.precision=bf16-mixed",
    "--trainer.accumulate_grad_batches=2",
)


@pytest.mark.slow
def test_a_network_given_as_a_file_keeps_nothing_of_the_one_in_the_config(capsys):
    arguments = [f"--config={ROOT / 'configs' / 'evad.yaml'}", "--model.init_args.network"]
    arguments += [str(ROOT / "configs" / "networks" / "evad_dense_tiny.yaml")]
    network = yaml.safe_load(printed_config(capsys, "fit", *arguments[:1]))["model"]["init_args"]["network"]
    assert network["init_args"]["backbone"]["init_args"]["keep_rates"]
    arguments += ["--model.init_args.network.init_args.backbone.init_args.enhanced_weight=2"]
    network = yaml.safe_load(printed_config(capsys, "fit", *arguments))["model"]["init_args"]["network"]
    backbone = network["init_args"]["backbone"]["init_args"]
    assert (backbone["keep_rates"], backbone["enhanced_weight"]) == (None, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "lr", "options"), [((), 2.5e-5, ()), (VIT_L, 1e-5, SAVING_MEMORY)], ids=["vit_b", "vit_l"]
)
def test_an_ava_recipe_runs_on_what_looks_like_ava(changes, lr, options, tmp_path):
    source = ava_arguments(write_ava(tmp_path / "ava"))  # two clips to train on
    network = f"--model.init_args.network={ROOT / 'configs' / 'networks' / 'evad_tiny.yaml'}"
    small = [network, "--data.init_args.loader.num_workers=0"]
    small += ["--data.init_args.num_frames=8", "--data.init_args.frames.short_side=96", "--trainer.max_epochs=1"]
    small += ["--trainer.enable_progress_bar=false", "--trainer.callbacks=null", "--trainer.logger=false"]
    small += [f"--data.init_args.source.init_args.{argument}={value}" for argument, value in source.items()]
    cli = main(["fit", f"--config={AVA_RECIPE}", *changes, *small, *options])
    assert cli.trainer.global_step == 1
    (optimizer,) = cli.trainer.optimizers
    assert sorted({group["initial_lr"] for group in optimizer.param_groups}) == pytest.approx([lr, 8 * lr])
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0, 1e-4}
    assert cli.model.protocol == "ava frame mAP@0.5, 4 of 80 classes, stride 4"
    # Crawling is annotated and learned, but not scored.
    logged = {name for name in cli.trainer.callback_metrics if name.startswith("val/ap/")}
    assert logged == {f"val/ap/{action}" for action in SCORED.values()}


@pytest.mark.parametrize("subcommand", ["fit", "validate", "test", "predict"])
def test_every_subcommand_prints_its_config(subcommand, capsys):
    printed = yaml.safe_load(printed_config(capsys, subcommand, f"--config={ROOT / 'configs' / 'evad.yaml'}"))
    assert printed["seed_everything"] == 0
    size = printed["model"]["init_args"]["network"]["init_args"]["backbone"]["init_args"]["size"]
    assert size["dim"] == 128
    assert printed["data"]["class_path"] == "datamodules.ClipDataModule"
    assert ("ckpt_path" in printed) or subcommand == "fit"


def test_a_source_with_few_labels_takes_another_source_from_its_file(capsys):
    few = ROOT / "configs" / "data" / "puppets_few_labels.yaml"
    arguments = [f"--config={ROOT / 'configs' / 'dsta.yaml'}", f"--data.init_args.source={few}"]
    arguments += ["--data.init_args.source.init_args.labelled_videos=0.1", "--data.init_args.unlabelled.share=0.5"]
    data = yaml.safe_load(printed_config(capsys, "fit", *arguments))["data"]["init_args"]
    assert data["unlabelled"]["share"] == 0.5 and data["source"]["class_path"].endswith("FewLabels")
    source = data["source"]["init_args"]
    assert (source["every"], source["labelled_videos"], source["seed"]) == (8, 0.1, 0)
    assert source["source"]["class_path"] == "datamodules.Puppets"
    assert source["source"]["init_args"]["size"] == "full"


def fit_for_two_batches(config: Path, puppets: Path) -> None:
    limits = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1"]
    cli = main(["fit", *on_puppets(config, puppets), *limits])
    assert cli.trainer.global_step == 2
    assert torch.isfinite(cli.trainer.callback_metrics["train/loss"])
    assert "val/map" in cli.trainer.callback_metrics
    latest = Path("runs") / config.stem / "latest"
    assert (latest / "checkpoints" / "last.ckpt").is_file()
    assert (latest / "config.yaml").is_file()
    assert (latest / "metrics.csv").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("config", [each for each in RUNNABLE if each.stem not in TESTED], ids=lambda each: each.stem)
def test_an_experiment_fits_for_two_batches(config, puppets):
    fit_for_two_batches(config, puppets)


@pytest.mark.slow
@pytest.mark.parametrize("name", TESTED)
def test_an_experiment_fits_for_two_batches_is_tested_into_the_table_and_predicts_into_files(name, puppets):
    config = ROOT / "configs" / f"{name}.yaml"
    fit_for_two_batches(config, puppets)
    arguments = on_puppets(config, puppets)
    checkpoint = f"--ckpt_path=runs/{name}/latest/checkpoints/last.ckpt"
    main(["test", *arguments, checkpoint, "--trainer.limit_test_batches=2"])
    (row,) = (json.loads(line) for line in Path("results/benchmark.jsonl").read_text().splitlines())
    assert row["experiment"] == name
    assert row["weights"].endswith("last.ckpt")
    assert row["gflops_unit"] == ("clip" if name == "evad" else "frame")
    assert f"| {name} " in Path("results/benchmark.md").read_text()
    main(["predict", *arguments, checkpoint, "--trainer.limit_predict_batches=3"])
    written = sorted(path.name for path in Path("runs/predictions").iterdir())
    assert written[0] == "val_0000.jsonl"
    first = json.loads(Path("runs/predictions/val_0000.jsonl").read_text().splitlines()[0])
    assert set(first) == {"video", "timestamp", "detections"} | ({"frame"} if name == "distill_dsta" else set())
    assert first["timestamp"] == 0


@pytest.mark.slow
def test_weights_of_other_classes_than_the_datas_are_refused_with_the_way_out(puppets, tmp_path):
    network = ROOT / "configs" / "networks" / "evad_tiny.yaml"
    save_weights(network_of(network, 7).state_dict(), tmp_path / "seven.pt")
    arguments = ["fit", *on_puppets(ROOT / "configs" / "evad.yaml", puppets)]
    with pytest.raises(UserError, match=r"know 7 classes, but the data has 10; .*--model\.training\.fresh") as error:
        main([*arguments, f"--model.weights={tmp_path / 'seven.pt'}"])
    fresh = re.search(r"fresh '(.*)'", str(error.value))[1]
    short = ["--trainer.fast_dev_run=true", f"--model.weights={tmp_path / 'seven.pt'}"]
    assert main([*arguments, *short, f"--model.training.fresh={fresh}"]).model.network.num_classes == 10


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which has bfloat16")
def test_on_a_processor_that_bfloat16_makes_no_faster_a_run_is_recorded_in_float32(puppets, monkeypatch):
    monkeypatch.setattr("lightning_modules.command_line.precision.cpu_computes_bfloat16", lambda: False)
    monkeypatch.delenv(CHOSEN, raising=False)
    arguments = [*on_puppets(ROOT / "configs" / "evad.yaml", puppets), "--trainer.precision=bf16-mixed"]
    cli = main(["fit", *arguments, "--trainer.max_steps=1", "--trainer.limit_val_batches=0"])
    assert cli.trainer.precision == "32-true"
    record = yaml.safe_load(Path("runs/evad/latest/config.yaml").read_text())
    assert record["trainer"]["precision"] == "32-true"
