"""`--help` of every command begins with its purpose and an example that runs; the most used arguments come first."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from lightning_modules.command_line.command_help import HELP
from main import OnlookerCLI, main

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = sorted(OnlookerCLI.subcommands())
FIRST = {"predict": "ckpt_path", "serve": "host", "check": "page", "score": "predictions", "analyse": "predictions"}
"""Argument that each command names right after its config; ``ckpt_path`` of Lightning's."""
PROGRAMS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    for room in ("lightning_modules", "datamodules", "callbacks", "results")
    for path in (ROOT / room).rglob("*.py")
    if path.name == "__main__.py" or '\nif __name__ == "__main__":' in path.read_text(encoding="utf-8")
)
pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")  # where pytest has arguments itself


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        main([*arguments])
    assert end.value.code == 0
    return capsys.readouterr().out


def example_of(text: str) -> str:
    """Return the first indented block of a help, its lines joined."""
    block = re.search(r"\n\n((?:    .*\n)+)", text)
    assert block is not None
    return re.sub(r"\\\n\s*", "", block[1]).strip()


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_begins_with_its_purpose_and_an_example_that_parses(command, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = shown(capsys, command, "--help")
    assert text.startswith(f"{HELP[command].purpose}\n\n    python main.py {command} ") and "usage:" not in text
    python, program, *arguments = shlex.split(example_of(text))
    assert (python, program, arguments[0]) == ("python", "main.py", command)
    assert "trainer:" in shown(capsys, *arguments, "--print_config")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_most_used_arguments_come_first_and_every_argument_once(command, capsys):
    text = shown(capsys, command, "--help")
    names = re.findall(r"^  (?:-\w,? ?\w*,? )?--([\w.]+)", text, flags=re.MULTILINE)
    assert names[:2] == ["help", "config"] and names[2] == FIRST.get(command, names[2])
    assert names.index("ckpt_path") < names.index("data") < names.index("seed_everything")
    assert names.index("data") < names.index("trainer.accelerator")
    assert len(names) == len(set(names)) > 50


def test_the_command_line_names_every_command_with_its_purpose(capsys):
    text = shown(capsys, "--help")
    assert text.startswith(HELP[""].purpose) and example_of(text).startswith("python main.py fit")
    listed = " ".join(text.partition("Available subcommands:")[2].split())
    for command in COMMANDS:
        assert f"{command} {HELP[command].purpose.splitlines()[0]}" in listed


def test_the_help_of_an_object_is_that_of_the_object(capsys):
    text = shown(capsys, "fit", "--model.help", "DistillationModule")
    assert "--model.teacher_weights" in text and "most used" not in text


def test_programs_are_found():
    assert {"datamodules.puppets", "datamodules.annotations.cvat", "results.tables"} < set(PROGRAMS)
    assert len(PROGRAMS) >= 15


@pytest.mark.filterwarnings("ignore:.*found in sys.modules.*:RuntimeWarning")
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_begins_with_its_purpose_and_an_example(program, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [program, "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module(program, run_name="__main__")
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert re.match(r"[A-Z][^\n]+", text) and example_of(text).startswith(f"python -m {program}")
    assert "\nusage: " in text[len(example_of(text)) :]
