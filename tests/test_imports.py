"""Imports point one way, and heavy packages are imported where they are used.

The source is parsed, never run, so an import inside a function or under ``TYPE_CHECKING`` counts for the direction too.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("lightning_modules", "datamodules", "callbacks")
PROGRAMS = ("results", "examples")
"""Programs that run main.py and make tables, and those to start from; nothing imports them."""
OURS = ("main", *ROOMS, *PROGRAMS, "tests")

# Slow to import, or absent where nothing is decoded or measured.
HEAVY = ("decord", "av", "albumentations", "cv2", "fvcore")
LIGHTNING = ("lightning", "pytorch_lightning", "lightning_fabric")


class Rule(NamedTuple):
    """Rule of imports for the modules below one name: which of ours they may import, which outside packages not."""

    modules: str
    ours: tuple[str, ...]
    words: str
    not_outside: tuple[str, ...] = ()
    not_ours: tuple[str, ...] = ()
    """Of what is allowed, what is not."""


COMMON_GROUND = (
    "datamodules.errors",
    "datamodules.files",
    "datamodules.text_files",
    "datamodules.tensor_file",
    "datamodules.program_help",
)
"""Modules that every room may import: the error of users, how files are written, how text and tensors are read."""

# The first rule whose name is a module's own or a parent's is the module's rule.
RULES = (
    *(
        Rule(room, (room, *COMMON_GROUND), f"{room} knows torch, field libraries and itself", LIGHTNING)
        for room in ("lightning_modules.networks", "lightning_modules.losses", "lightning_modules.metrics")
    ),
    Rule(
        "lightning_modules.session",
        ("lightning_modules", "datamodules"),
        "the session joins a network with sources of frames, without Lightning",
        LIGHTNING,
    ),
    Rule("lightning_modules.evaluation.benchmark", (), "the form of a measurement knows torch", LIGHTNING),
    # The commands are what main.py runs, and bring data, model and measurements together as it does.
    Rule("lightning_modules.commands", ROOMS, "commands know the rooms, as main does"),
    Rule("lightning_modules.command_line", ROOMS, "the command line knows the rooms, as main does"),
    Rule(
        "lightning_modules.evaluation",
        ("lightning_modules", "datamodules.batches", *COMMON_GROUND),
        "evaluation knows networks, metrics, linking and datamodules.batches, not Lightning",
        LIGHTNING,
    ),
    Rule(
        "lightning_modules",
        ("lightning_modules", "datamodules.batches", *COMMON_GROUND),
        "LightningModules know each other, networks, losses, metrics and datamodules.batches, but no command",
        not_ours=("lightning_modules.commands", "lightning_modules.command_line"),
    ),
    Rule(
        "callbacks.events.machine",
        ("callbacks.events.rules", "callbacks.events.zones", "lightning_modules.evaluation.tracked"),
        "events are made of frames alone, without clock, thread or file",
        (*LIGHTNING, "time", "threading", "pathlib", "os", "uuid"),
    ),
    Rule(
        "callbacks",
        (
            "callbacks",
            "lightning_modules.networks.streaming",
            "lightning_modules.networks.detection.outputs",
            "lightning_modules.metrics.segment_results",
            "lightning_modules.metrics.tube_results",
            "lightning_modules.metrics.tubes",
            "lightning_modules.metrics.streaming_map",
            "lightning_modules.evaluation.benchmark",
            "lightning_modules.evaluation.tracked",
            "datamodules.batches",
            "datamodules.video.drawn_videos",
            *COMMON_GROUND,
        ),
        "callbacks know themselves, networks.streaming, networks.detections, the forms of results and measurements, "
        "streaming mAP, datamodules.batches and drawn_videos",
    ),
    Rule("datamodules", ("datamodules",), "datamodules knows nothing else of ours"),
    Rule("main", ROOMS, "main knows the rooms"),
    Rule(
        "results.benchmarks",
        (*ROOMS, "results.benchmarks", "results.tables.markdown", "results.experiments"),
        "benchmarks know the rooms, each other, tables in Markdown, and lists and runs of experiments",
    ),
    Rule(
        "results.experiments",
        ("results.experiments", *COMMON_GROUND),
        "the programs that run experiments know each other, and wait beside a training without torch",
        (*LIGHTNING, "torch"),
    ),
    Rule("examples.run_exported_student", (), "a student runs without this repository", (*LIGHTNING, "torch")),
    Rule("examples", ROOMS, "examples know the rooms and no config", LIGHTNING),
    Rule(
        "results",
        ("results.tables", "results.experiments", *COMMON_GROUND),
        "tables know each other and the lists of experiments",
        (*LIGHTNING, "torch"),
    ),
)


class Import(NamedTuple):
    """One imported name: the line of its statement, the full dotted name, and whether importing the file runs it."""

    line: int
    name: str
    at_module_level: bool


def is_below(name: str, parents: tuple[str, ...]) -> bool:
    """Return whether a name is one of ``parents`` or inside one: ``av.video`` is below ``av``, ``avro`` is not."""
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


def statements(node: ast.AST, at_module_level: bool = True) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Every import below ``node``, with whether it runs when the file is imported."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node, at_module_level
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        at_module_level = False
    if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        for child in node.body:
            yield from statements(child, at_module_level=False)
        for child in node.orelse:
            yield from statements(child, at_module_level)
        return
    for child in ast.iter_child_nodes(node):
        yield from statements(child, at_module_level)


def imports_of(root: Path, path: Path) -> Iterator[Import]:
    """The imports of one file; relative ones made absolute, ``from package import module`` named as the module."""
    package = path.relative_to(root).parent.parts
    for statement, at_module_level in statements(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                yield Import(statement.lineno, alias.name, at_module_level)
            continue
        base = package[: len(package) - statement.level + 1] if statement.level else ()
        source = ".".join((*base, *filter(None, [statement.module])))
        for alias in statement.names:
            module = root.joinpath(*source.split("."), alias.name)
            is_module = module.with_suffix(".py").is_file() or module.is_dir()
            yield Import(statement.lineno, f"{source}.{alias.name}" if is_module else source, at_module_level)


def sources(root: Path) -> list[Path]:
    """``main.py`` and every Python file of the rooms and the programs."""
    return [root / "main.py", *sorted(path for room in (*ROOMS, *PROGRAMS) for path in (root / room).rglob("*.py"))]


def violations(root: Path) -> list[str]:
    """One line ``file:line: imports name; rule`` for each import that breaks a rule."""
    found = []
    for path in sources(root):
        relative = path.relative_to(root)
        module = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
        rule = next(rule for rule in RULES if is_below(module, (rule.modules,)))
        for line, name, at_module_level in imports_of(root, path):
            where = f"{relative.as_posix()}:{line}: imports {name}"
            is_allowed = is_below(name, rule.ours) and not is_below(name, rule.not_ours)
            if (is_below(name, OURS) and not is_allowed) or is_below(name, rule.not_outside):
                found.append(f"{where}; {rule.words}")
            if is_below(name, HEAVY) and at_module_level:
                found.append(f"{where}; move it into the function that uses it ({', '.join(HEAVY)} are heavy)")
    return found


def test_imports_point_one_way_and_heavy_packages_wait_until_used():
    found = violations(ROOT)
    assert not found, "\n" + "\n".join(found)


def test_no_rule_is_without_files():
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sources(ROOT)]
    for rule in RULES:
        assert any(is_below(module, (rule.modules,)) for module in modules), f"no file below {rule.modules}"


@pytest.fixture
def house(tmp_path):
    """A house whose rooms are empty files; ``house(name, source)`` fills one and gives its violations."""
    networks = "lightning_modules/networks"
    names = (
        "main",
        "callbacks/measures/flops",
        "datamodules/batches",
        "datamodules/video/readers",
        "datamodules/annotations/ava",
    )
    for name in (*names, "lightning_modules/stream_distillation", f"{networks}/streaming", f"{networks}/detection/vit"):
        file = tmp_path / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()

    def fill(name: str, source: str) -> list[str]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)
        return violations(tmp_path)

    return fill


@pytest.mark.parametrize(
    ("file", "source", "name"),
    [
        ("lightning_modules/stream_distillation.py", "from .commands import check", "lightning_modules.commands"),
        ("lightning_modules/commands/check.py", "import results.tables", "results.tables"),
        (
            "lightning_modules/networks/detection/vit.py",
            "import datamodules.video.readers",
            "datamodules.video.readers",
        ),
        (
            "lightning_modules/networks/detection/vit.py",
            "from datamodules.batches import ClipBatch",
            "datamodules.batches",
        ),
        (
            "lightning_modules/networks/detection/vit.py",
            "from ...stream_distillation import step",
            "lightning_modules.stream_distillation",
        ),
        (
            "lightning_modules/networks/detection/vit.py",
            "from ... import stream_distillation",
            "lightning_modules.stream_distillation",
        ),
        ("lightning_modules/networks/detection/vit.py", "from lightning.pytorch import Trainer", "lightning.pytorch"),
        (
            "lightning_modules/losses/__init__.py",
            "from ..networks.detection import vit",
            "lightning_modules.networks.detection.vit",
        ),
        ("lightning_modules/metrics/frame_map.py", "def f():\n  import main", "main"),
        (
            "lightning_modules/stream_distillation.py",
            "from datamodules.video import readers",
            "datamodules.video.readers",
        ),
        ("lightning_modules/stream_distillation.py", "from datamodules import ClipBatch", "datamodules"),
        ("lightning_modules/stream_distillation.py", "import callbacks.measures.flops", "callbacks.measures.flops"),
        ("lightning_modules/stream_distillation.py", "import torch, av", "av"),
        (
            "callbacks/measures/flops.py",
            "from lightning_modules.networks.detection import vit",
            "lightning_modules.networks.detection.vit",
        ),
        ("callbacks/measures/flops.py", "from lightning_modules import networks", "lightning_modules.networks"),
        ("callbacks/measures/flops.py", "class Flops:\n  from fvcore.nn import flop_count", "fvcore.nn"),
        ("datamodules/annotations/ava.py", "import lightning_modules", "lightning_modules"),
        ("datamodules/video/readers.py", "try:\n  import decord\nexcept ImportError:\n  decord = None", "decord"),
        ("datamodules/video/readers.py", "import tests.helpers", "tests.helpers"),
    ],
)
def test_a_planted_violation_is_found_and_placed(house, file, source, name):
    line = next(number for number, text in enumerate(source.split("\n"), start=1) if "import " in text)
    (found,) = house(file, source)
    assert found.startswith(f"{file}:{line}: imports {name}; ")


@pytest.mark.parametrize(
    ("file", "source"),
    [
        (
            "main.py",
            "import lightning, datamodules.video.readers, callbacks.measures.flops\n"
            "from lightning_modules import stream_distillation",
        ),
        (
            "lightning_modules/networks/detection/vit.py",
            "import torch, timm, torchvision\nfrom ..streaming import StreamingModule",
        ),
        (
            "lightning_modules/networks/detection/vit.py",
            "from .. import streaming\nfrom lightning_modules.networks.detection import vit",
        ),
        ("lightning_modules/stream_distillation.py", "import lightning\nfrom datamodules import batches"),
        (
            "lightning_modules/stream_distillation.py",
            "from .networks.detection.vit import ViT\nfrom datamodules.batches import ClipBatch",
        ),
        ("callbacks/measures/flops.py", "def count():\n  from fvcore.nn import FlopCountAnalysis"),
        ("callbacks/measures/flops.py", "from lightning_modules.networks.streaming import StreamingModule"),
        ("datamodules/annotations/ava.py", "from ..video import read\nfrom .. import batches\nimport avro"),
        (
            "lightning_modules/commands/check.py",
            "import callbacks.measures.flops\nfrom datamodules.video import readers",
        ),
        ("datamodules/video/readers.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n  import av"),
    ],
)
def test_an_allowed_import_is_left_alone(house, file, source):
    assert house(file, source) == []
