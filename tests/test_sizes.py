"""Files, folders and constructors stay short, and constructors say all that they take."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("lightning_modules", "datamodules", "callbacks")
FILES, LINES, LINES_OF_MAIN = 16, 320, 200
"""At most, of a folder and of a file."""
MOST = 12
"""Arguments of a constructor; more belong into a dataclass of settings."""


def constructors(rooms: tuple[str, ...]) -> Iterator[tuple[str, ast.arguments]]:
    """Yield the file and class of every ``__init__`` of a public class, and its arguments."""
    for path in sorted(path for room in rooms for path in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                for part in node.body:
                    if isinstance(part, ast.FunctionDef) and part.name == "__init__":
                        yield f"{path.relative_to(ROOT)}: {node.name}", part.args


@pytest.mark.parametrize("room", ROOMS)
def test_no_constructor_takes_more_than_twelve_arguments(room):
    counts = {name: len(each.args) + len(each.kwonlyargs) - 1 for name, each in constructors((room,))}
    assert counts and {name: count for name, count in counts.items() if count > MOST} == {}


def test_no_constructor_takes_arguments_that_it_does_not_name():
    """Metrics and the parser aside: what they extend, torchmetrics and Lightning, passes them on."""
    open_ended = [name for name, each in constructors(ROOMS) if each.kwarg is not None]
    extending = ("lightning_modules/metrics/", "lightning_modules/command_line/parser.py")
    assert [name for name in open_ended if not name.startswith(extending)] == []


def test_no_folder_of_source_holds_more_than_sixteen_files_and_no_file_more_than_320_lines():
    files = [path for room in (*ROOMS, "results") for path in (ROOT / room).rglob("*.py")]
    folders = Counter(str(path.parent.relative_to(ROOT)) for path in files if path.name != "__init__.py")
    assert {folder: count for folder, count in folders.items() if count > FILES} == {}
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert lengths and {file: length for file, length in lengths.items() if length > LINES} == {}
    assert len((ROOT / "main.py").read_text().splitlines()) <= LINES_OF_MAIN
