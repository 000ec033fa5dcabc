"""Help of the commands of ``main.py``: what each is for, an example, and the most used arguments first."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import NamedTuple

FIRST, LAST = ("help", "config"), ("ckpt_path", "name", "print_config", "model", "data")
"""Most used arguments of all commands, before and after those of the command itself."""
OF_THE_PARSER = ("options", "subcommands", "Linked arguments")
"""Titles of groups that the parser makes by itself."""
TITLES = {
    "model": "model",
    "data": "data",
    "trainer": "trainer, of Lightning",
    "optimizer": "optimizer, of Lightning; --model.optimizer is ours",
    "lr_scheduler": "learning rate, of Lightning; --model.training.schedule is ours",
}
"""Titles of groups by the first part of their arguments' names."""


class CommandHelp(NamedTuple):
    """Beginning of a command's help."""

    purpose: str
    example: str
    most_used: tuple[str, ...] = ()
    """Arguments that stand first, beside those of all commands."""


TRAINER = ("trainer.max_epochs", "trainer.devices", "trainer.strategy", "trainer.precision")
OWN_VIDEOS = (
    "--data.source.videos videos --data.source.annotations boxes.csv \\\n        --data.source.classes classes.txt"
)
SAVED = "--config configs/distill_tsa.yaml --predictions runs/distill_tsa/latest/predictions.csv"
HELP = {
    "": CommandHelp(
        "Train, measure and run video action detectors.", "python main.py fit --config configs/distill_dsta.yaml"
    ),
    "fit": CommandHelp(
        "Train the experiment of a config. Its config, metrics, pictures and checkpoints go to runs/<name>.",
        "python main.py fit --config configs/distill_dsta.yaml",
        TRAINER,
    ),
    "validate": CommandHelp(
        "Measure the accuracy of trained weights on the validation videos.",
        "python main.py validate --config configs/distill_tsa.yaml --model.weights results/weights/tsa.pt",
        TRAINER[1:],
    ),
    "test": CommandHelp(
        "Measure accuracy, GFLOPs, latency and memory, and add a row to results/benchmark.md.",
        "python main.py test --config configs/distill_dsta.yaml \\\n"
        "        --ckpt_path runs/distill_dsta/latest/checkpoints/last.ckpt",
        ("table_folder", *TRAINER[1:]),
    ),
    "predict": CommandHelp(
        "Detect people and their actions in videos or a camera's frames. Results go to runs/predictions.\n"
        "--weights and --source are short for --model.weights and --data.source. The card of the weights gives the\n"
        "network, its classes and the sampling of frames.",
        "python main.py predict --weights results/weights/dsta.pt --source street.mp4",
        TRAINER[1:],
    ),
    "serve": CommandHelp(
        "Predict, and show the result in the browser: live pictures with boxes, delay, events, and /health as JSON.",
        "python main.py serve --weights results/weights/dsta.pt --source street.mp4",
        ("host", "port", "token", "rules", *TRAINER[1:]),
    ),
    "check": CommandHelp(
        "Check the data that a config names, draw some of it, and report every mistake with its remedy.",
        f"python main.py check --config configs/evad_own_videos.yaml {OWN_VIDEOS}",
        ("page", "page_clips", "every_frame", "names_shown"),
    ),
    "score": CommandHelp(
        "Score saved predictions without a model: boxes, tubes or segments.",
        f"python main.py score {SAVED}",
        ("predictions", "split", "metric", "video_protocol", "tiou_thresholds", "since_start", "verbose"),
    ),
    "analyse": CommandHelp(
        "Explain the errors of saved predictions and the mAP that each kind costs, on pages of HTML and Markdown.",
        f"python main.py analyse {SAVED}",
        ("predictions", "against", "output", "split", "iou_threshold", "num_pictures"),
    ),
    "export": CommandHelp(
        "Export a network to ONNX or torch.export, and compare the file with PyTorch.\n"
        "A student's step has its state as inputs and outputs; a teacher takes a clip.",
        "python main.py export --config configs/distill_dsta.yaml --ckpt_path results/weights/dsta.pt",
        ("format", "output", "image_size", "batch_size", "dynamic_batch", "video", "benchmark"),
    ),
    "maps": CommandHelp(
        "Compute once the feature maps of all frames and their mirror images by a frozen stem, into data.frames.maps.\n"
        "Training reads them in place of frames. The same command resumes an interrupted one.",
        "python main.py maps --config configs/jhmdb/teacher.yaml \\\n"
        "        --model.network.backbone.stem.weights STEM.pth",
        ("runtime", "num_threads"),
    ),
}
"""Help of each command; that of ``main.py`` itself has no name."""


def beginning(about: CommandHelp) -> str:
    """Return the first lines of a help."""
    return f"{about.purpose}\n\n    {about.example}\n"


@contextmanager
def most_used_first(parser: argparse.ArgumentParser, about: CommandHelp, left_out: object | None) -> Iterator[None]:
    """Show a parser's most used arguments before the others, and neither usage nor description.

    Args:
        left_out: a group that is not shown.
    """
    before = parser._action_groups, parser.usage, parser.description
    own = [name for name in about.most_used if name not in TRAINER]
    names = (*FIRST, *own, *LAST, *(name for name in about.most_used if name in TRAINER))
    groups = [group for group in parser._action_groups if group is not left_out]
    actions = {action.dest: action for group in groups for action in group._group_actions}
    sections = [SimpleNamespace(title="most used", description=None, _group_actions=_of(actions, names))]
    for group in groups:
        others = [action for action in group._group_actions if action.dest not in names]
        if others:
            title = (
                group.title if group.title in OF_THE_PARSER else TITLES.get(others[0].dest.partition(".")[0], "further")
            )
            sections.append(SimpleNamespace(title=title, description=group.description, _group_actions=others))
    # Lightning's are many: they come last.
    sections.sort(key=lambda section: section.title in TITLES.values())
    try:
        parser._action_groups, parser.usage, parser.description = sections, argparse.SUPPRESS, None  # type: ignore[assignment]
        yield
    finally:
        parser._action_groups, parser.usage, parser.description = before


def _of(actions: Mapping[str, argparse.Action], names: Sequence[str]) -> list[argparse.Action]:
    return [actions[name] for name in names if name in actions]
