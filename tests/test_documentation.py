"""Pages are true: links and pointers lead somewhere, commands parse, the README stays short."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from datamodules.errors import UsageError, UserError
from main import main
from tests.lightning_modules.command_line.command_line import CommandLine

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ("main.py", "lightning_modules", "datamodules", "callbacks", "results", "examples", "tests")
COMMANDS = sorted({*ROOT.glob("*.md"), *ROOT.glob("[a-z]*/**/README.md"), ROOT / "results/pages/summary.md"})
COMMANDS += [ROOT / "results" / "pages" / "findings.md", ROOT / ".github" / "CONTRIBUTING.md"]
"""Pages whose commands must run today; tables of `results/pages` name those of their commits."""
LINES, WORDS, WORDS_PER_SENTENCE = 220, 1700, 17
"""At most, of the README."""
WORDS_PER_DOCSTRING_SENTENCE = 40
"""At most; most have half of it."""
README = (ROOT / "README.md").read_text(encoding="utf-8")


def files(*endings: str) -> list[Path]:
    """Return the files of the repository with these endings, those that git ignores left out."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [ROOT / name for name in listed.splitlines() if name.endswith(endings) and (ROOT / name).is_file()]


PAGES = files(".md")


def anchors(page: Path) -> set[str]:
    """Return the names of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


def without_code(text: str) -> str:
    """Leave blocks of code out, fenced and indented."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return "\n".join(line for line in text.splitlines() if not line.startswith("    "))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file_and_a_heading(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8"))):
        name, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target) or target.startswith("../../"):  # of the web; of GitHub's own pages
            continue
        file = page if not name else (page.parent / name).resolve()
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def docstrings(file: Path) -> Iterator[tuple[int, str]]:
    """Yield the docstrings of a module, its classes, functions and attributes, with their lines."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        body = getattr(node, "body", ())
        for statement in body if isinstance(body, list) else ():  # that of a lambda is an expression
            value = statement.value if isinstance(statement, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield statement.lineno, value.value


SOURCES = [file for file in files(".py") if file.relative_to(ROOT).parts[0] in PYTHON]


def test_no_docstring_begins_with_what():
    """It is a verb in the imperative or a noun."""
    found = [
        f"{file.relative_to(ROOT)}:{line}"
        for file in SOURCES
        for line, text in docstrings(file)
        if re.match(r"What\b", text.strip())
    ]
    assert len(SOURCES) > 300 and found == []


def docstring_sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a docstring; a literal is one word, lines of tables and of code are none."""
    prose = [line for line in text.splitlines() if not re.match(r"\s*(\||>>>)|.*\S {2,}\S", line)]
    entry = r"\n(?=\s*(?:- |\* |[\w*]+(?:, [\w*]+)*: ))"  # of a list, of the arguments
    for paragraph in re.split(rf"\n\s*\n|{entry}", re.sub(r"``.*?``", "literal", "\n".join(prose), flags=re.DOTALL)):
        yield from (each for each in re.split(r"(?<=[.!?])\s+", " ".join(paragraph.split())) if each)


def test_sentences_of_a_docstring_are_told_apart():
    text = "One is ``a b. c`` long.\n    Two goes\n    on.\n\n    | a. | b |\n"
    text += "    Args:\n        x, y: three. Four\n        z: five"
    assert list(docstring_sentences(text)) == [
        "One is literal long.",
        "Two goes on.",
        "Args:",
        "x, y: three.",
        "Four",
        "z: five",
    ]


def test_no_sentence_of_a_docstring_is_hard_to_read():
    long = [
        f"{file.relative_to(ROOT)}:{line}: {sentence}"
        for file in SOURCES
        for line, text in docstrings(file)
        for sentence in docstring_sentences(text)
        if len(sentence.split()) > WORDS_PER_DOCSTRING_SENTENCE
    ]
    assert long == []


def test_pages_that_docstrings_and_comments_name_are_there_with_the_section_that_they_name():
    names = {page.name: page for page in PAGES}
    pointers, lost = 0, []
    for file in SOURCES:
        if file.relative_to(ROOT).parts[0] == "tests":
            continue
        text = file.read_text(encoding="utf-8")
        for match in re.finditer(r"`([\w./-]+\.md)`(?:,? (?:sections? )?(\d+(?:\.\d+)?))?", text):
            page = names.get(Path(match[1]).name)
            pointers += 1
            headings = "" if page is None else page.read_text(encoding="utf-8")
            if page is None or (match[2] and not re.search(rf"^#+ {match[2]}\.? ", headings, flags=re.MULTILINE)):
                lost.append(f"{file.relative_to(ROOT)}: {match[0]}")
    assert pointers > 10 and lost == []


def shell_lines(page: Path) -> Iterator[str]:
    """Yield the commands of a page's blocks, continued lines joined and comments left out."""
    text = page.read_text(encoding="utf-8")
    fenced = re.findall(r"^```(?:sh|bash)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    indented = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    lines = "\n".join(line for line in indented.splitlines() if line.startswith("    "))
    for line in re.sub(r"\\\n\s*", " ", "\n".join([*fenced, lines])).splitlines():
        yield line.strip()


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of every command of a page, variables of the shell replaced by what the page sets them to."""
    variables: dict[str, str] = {}

    def replaced(text: str) -> str:
        return re.sub(r"\$\{?(\w+)\}?", lambda match: variables.get(match[1], match[0]), text)

    for line in shell_lines(page):
        if loop := re.match(r"for (\w+) in (\S+)", line):
            variables[loop[1]] = loop[2]
            continue
        try:
            words = shlex.split(replaced(line), comments=True)
        except ValueError:  # a line of a program or of a text
            continue
        while words and (given := re.match(r"(\w+)=(.*)", words[0], flags=re.DOTALL)):
            variables[given[1]] = given[2]
            words = words[1:]
        if words:
            yield words


def of_main(words: list[str]) -> list[str] | None:
    """Return the arguments of `main.py` where a command runs it."""
    if words[0].rpartition("/")[2] not in ("python", "torchrun", "srun") or "main.py" not in words:
        return None
    return words[words.index("main.py") + 1 :]


RUN_BY_MAIN: dict[tuple[str, ...], Path] = {}
"""Arguments of every command, with the last page that it is on."""
for each in COMMANDS:
    RUN_BY_MAIN |= {tuple(found): each for words in commands(each) if (found := of_main(words)) is not None}


def test_every_kind_of_command_is_found_on_the_pages():
    found = {command for command, *_ in RUN_BY_MAIN}
    assert found == {"fit", "validate", "test", "predict", "serve", "check", "score", "analyse", "export", "maps"}
    assert len(RUN_BY_MAIN) > 35


@pytest.fixture(scope="module")
def command_line() -> CommandLine:
    return CommandLine()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")  # where pytest has arguments itself
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(arguments, id=f"{page.relative_to(ROOT)}: {' '.join(arguments)[:80]}")
        for arguments, page in RUN_BY_MAIN.items()
    ],
)
def test_a_command_of_a_page_parses(command_line, arguments, tmp_path, monkeypatch, capsys):
    """Files that it names need not be there."""
    monkeypatch.chdir(ROOT)
    if arguments[0] == "predict" and any(argument.endswith(".onnx") for argument in arguments):
        # An earlier command of the page, or `make demo`, writes the file, whose card is read first.
        elsewhere = [str(tmp_path / argument) if argument.endswith(".onnx") else argument for argument in arguments]
        with pytest.raises(UserError, match=r"\.onnx: no such file"):
            command_line.read(*elsewhere, "--print_config")
        return
    with pytest.raises(SystemExit) as end:
        command_line.read(*arguments, "--print_config")
    assert end.value.code == 0 and "trainer:" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
def test_a_command_with_a_key_that_is_gone_does_not_parse():
    with pytest.raises(UsageError, match="has no such key"):
        main(["fit", f"--config={ROOT / 'configs' / 'evad.yaml'}", "--model.video_map.linker=online", "--print_config"])


def test_modules_and_targets_that_pages_run_are_there():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    modules, made = [], []
    for page in COMMANDS:
        for words in commands(page):
            if words[0].endswith("python") and words[1:2] == ["-m"]:
                modules.append(words[2])
            if words[0] == "make" and len(words) > 1:
                made.append(words[1])
    assert modules and [name for name in modules if importlib.util.find_spec(name) is None] == []
    assert made and [name for name in made if name not in targets] == []


def sentences(text: str) -> list[str]:
    """Return the sentences of a page, without headings, tables, pictures and code; list entries are their own."""
    prose = [line for line in without_code(text).splitlines() if not line.startswith(("|", "#", "!["))]
    plain = re.sub(r"\]\([^)]*\)", "]", "\n".join(prose))
    blocks = [" ".join(block.split()).removeprefix("- ") for block in re.split(r"\n\s*\n|\n(?=- )", plain)]
    return [each for block in blocks for each in re.split(r"(?<=[.!?])\**\s+", block) if each]


def test_sentences_are_told_apart():
    text = "# Title\n\nOne is here. **Two** is [long](a.md).\n\n    code. code\n\n- three\n- four. five\n\n| a. b |\n"
    assert sentences(text) == ["One is here.", "**Two** is [long].", "three", "four.", "five"]


def test_the_readme_is_one_that_is_read():
    assert len(README.splitlines()) <= LINES and len(README.split()) <= WORDS
    lengths = [len(each.split()) for each in sentences(README)]
    assert len(lengths) > 40 and sum(lengths) / len(lengths) <= WORDS_PER_SENTENCE


def test_the_readme_names_the_set_up_and_the_main_job():
    for command in ("make demo", "make test", "python main.py fit --config configs/distill_dsta.yaml"):
        assert f"\n    {command}" in README
    assert "\n    python main.py test --config configs/distill_dsta.yaml" in README
