"""Lists of experiments: what a row is made of, and what is wrong in a list is named with its place."""

from pathlib import Path

import pytest
import yaml

from datamodules.errors import UserError
from results.experiments.lists import ExperimentList, Stage, read_list
from results.experiments.runs import runs_of
from tests.lightning_modules.command_line.command_line import CommandLine

ROOT = Path(__file__).resolve().parents[3]
LISTS = sorted((ROOT / "results" / "lists").glob("*.yaml"))
FIT = {"config": "mine.yaml"}


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Reads a list of the given rows and other parts; there is one config, mine.yaml."""
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("model: {}")
    Path("other.yaml").write_text("model: {}")

    def reader(rows, **parts):
        content = {"title": "mine", "metrics": [{"key": "test/map"}], "rows": rows} | parts
        Path("list.yaml").write_text(yaml.safe_dump(content))
        return read_list(Path("list.yaml"))

    return reader


def test_a_row_is_tested_as_it_was_trained_with_its_tests_overrides_on_top(read):
    fit = {"config": "mine.yaml", "overrides": {"a": 1, "b": 2}, "needs": {"teacher": "first"}}
    listing = read([{"name": "first", "fit": FIT}, {"name": "second", "fit": fit, "test": {"overrides": {"b": 3}}}])
    _, row = listing.rows
    assert row.fit == Stage("mine.yaml", {"a": 1, "b": 2}, {"teacher": "first"})
    assert row.test == Stage("mine.yaml", {"a": 1, "b": 3}, {"teacher": "first"})
    assert (row.title, row.seeds) == ("second", [0])


def test_a_test_with_a_config_of_its_own_stands_alone(read):
    fit = {"config": "mine.yaml", "overrides": {"a": 1}}
    (row,) = read([{"name": "one", "fit": fit, "test": {"config": "other.yaml", "overrides": {"c": 1}}}]).rows
    assert row.test == Stage("other.yaml", {"c": 1})


def test_defaults_are_below_every_row(read):
    defaults = {"fit": {"config": "mine.yaml", "overrides": {"a": 1, "b": 1}}, "test": {"overrides": {"c": 1}}}
    rows = [{"name": "one", "fit": {"overrides": {"a": 2}}}, {"name": "two", "test": FIT, "seeds": [7]}]
    one, two = read(rows, defaults=defaults, seeds=[1, 2]).rows
    assert one.fit == Stage("mine.yaml", {"a": 2, "b": 1})
    assert one.test == Stage("mine.yaml", {"a": 2, "b": 1, "c": 1})
    assert two.fit is None
    assert two.test == Stage("mine.yaml", {"c": 1})
    assert (one.seeds, two.seeds) == ([1, 2], [7])


@pytest.mark.parametrize("argument", ["model.weights", "model.init_args.weights"])
def test_an_override_of_a_test_replaces_the_checkpoint_that_its_training_needs(read, argument):
    student = {"config": "mine.yaml", "needs": {"model.weights": "teacher"}}
    rows = [
        {"name": "teacher", "fit": FIT},
        {"name": "student", "fit": student, "test": {"overrides": {argument: None}}},
    ]
    _, run = runs_of(read(rows), "mine")
    assert any(given.startswith("--model.weights=runs/") for given in run.command("fit"))
    assert [given for given in run.command("test") if "weights" in given] == [f"--{argument}=null"]


def test_a_key_that_is_written_twice_is_refused_with_its_line(read, tmp_path):
    read([{"name": "one", "fit": FIT}])
    common = "title: mine\nmetrics: [{key: test/map}]\nrows:\n  - &one {name: one, fit: &fit {config: mine.yaml}}\n"
    merged = "  - {<<: *one, name: two, fit: {<<: *fit, config: other.yaml}}\n"
    twice = "  - name: three\n    fit: {<<: *fit, overrides: {a: 1}, overrides: {b: 2}}\n"
    file = tmp_path / "list.yaml"
    file.write_text(common + merged)
    assert read_list(file).rows[1].fit == Stage("other.yaml")
    file.write_text(common + merged + twice)
    with pytest.raises(UserError, match=r"list.yaml:7: overrides is written twice"):
        read_list(file)


def test_seeds_that_would_test_one_checkpoint_again_are_refused(read):
    again = {"config": "mine.yaml", "needs": {"ckpt_path": "one"}}
    rows = [{"name": "one", "fit": FIT, "seeds": [0]}, {"name": "two", "test": again, "seeds": [0, 1, 2]}]
    with pytest.raises(UserError, match=r"\(two\)\.test\.needs: seeds 1, 2 would test .* seed 0 again"):
        read(rows)
    rows[1]["seeds"] = [0]
    assert len(read(rows).rows) == 2


def test_an_object_in_overrides_is_kept_as_it_is_written(read):
    source = {"class_path": "Puppets", "init_args": {"size": "tiny"}}
    (row,) = read([{"name": "one", "fit": FIT | {"overrides": {"data.source": source}}}]).rows
    assert row.fit.overrides == {"data.source": source}
    (run,) = runs_of(ExperimentList("mine", [row], []), "mine")
    argument = '--data.source={"class_path": "Puppets", "init_args": {"size": "tiny"}}'
    assert argument in run.command("fit")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"name": "one", "fit": {"conifg": "mine.yaml"}}], r"list.yaml: rows\[0\] \(one\)\.fit: there is no 'conifg'"),
        ([{"nam": "one", "fit": FIT}], r"list.yaml: rows\[0\]: there is no 'nam'; it may have name, title"),
        ([{"fit": FIT}], r"rows\[0\]: .*name"),
        ([{"name": "one", "fit": FIT, "seeds": "all"}], r"rows\[0\] \(one\): .*seeds"),
        ([{"name": "one", "fit": FIT, "seeds": [1, 1]}], r"rows\[0\] \(one\): seeds must be different numbers"),
        ([{"name": "one", "fit": FIT, "seeds": []}], "one at least"),
        ([{"name": "one", "fit": {**FIT, "overrides": 3}}], r"rows\[0\] \(one\)\.fit\.overrides: expected"),
        ([{"name": "one", "fit": {"config": "none.yaml"}}], "no config at none.yaml"),
        ([{"name": "one"}], r"rows\[0\] \(one\)\.test: no config"),
        ([{"name": "a/b", "fit": FIT}], "a name is a folder's"),
        ([{"name": "one", "fit": FIT}, {"name": "one", "fit": FIT}], "there is a row of this name above"),
        ([{"name": "one", "fit": {**FIT, "overrides": {"ckpt_path": "x"}}}], "ckpt_path is set for every run"),
        ([{"name": "one", "fit": {**FIT, "overrides": {"name": "x"}}}], "name is set for every run"),
        ([{"name": "one", "fit": {**FIT, "needs": {"teacher": "two"}}}, {"name": "two", "fit": FIT}], r"needs: .*none"),
        (
            [
                {"name": "one", "fit": FIT},
                {"name": "two", "fit": {**FIT, "needs": {"a": "one"}, "overrides": {"a": 1}}},
            ],
            "a is the checkpoint of one and has a value too",
        ),
        ([{"name": "one", "test": FIT}, {"name": "two", "test": {**FIT, "needs": {"a": "one"}}}], "that is trained"),
        (
            [{"name": "one", "fit": FIT, "tag": "old"}, {"name": "two", "fit": {**FIT, "needs": {"a": "one"}}}],
            r"that is trained \(none\), got one",
        ),
        (["one"], r"rows\[0\]: expected names with values, got 'one'"),
        ([], "rows must be a list with something in it"),
    ],
)
def test_what_is_wrong_in_a_row_is_named_with_its_place(read, rows, message):
    with pytest.raises(UserError, match=message):
        read(rows)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"titel": "mine"}, "list.yaml: there is no 'titel'"),
        ({"defaults": {"ft": {}}}, "defaults: there is no 'ft'"),
        ({"defaults": {"fit": {"steps": 3}}}, "defaults.fit: there is no 'steps'"),
        ({"metrics": [{"key": "a"}, {"key": "b", "percent": "maybe"}]}, r"metrics\[1\]: .*percent"),
        ({"metrics": []}, "metrics must be a list"),
    ],
)
def test_what_is_wrong_beside_the_rows_is_named_with_its_place(read, parts, message):
    with pytest.raises(UserError, match=message):
        read([{"name": "one", "fit": FIT}], **parts)


def test_a_row_that_an_older_commit_runs_needs_no_config_any_more(read):
    (row,) = read([{"name": "one", "tag": "before-parts", "fit": {"config": "gone.yaml"}}]).rows
    assert row.tag == "before-parts"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
def test_every_setting_of_our_lists_is_one_of_its_config(monkeypatch, capsys):
    """As few commands as name every setting: the command line refuses what it does not know."""
    monkeypatch.chdir(ROOT)
    runs = [run for file in LISTS for run in runs_of(read_list(file), file.stem) if run.row.tag is None]
    command_line, named = CommandLine(), set[tuple[str | None, str]]()
    for run in sorted(runs, key=lambda run: -len(run.row.test.overrides)):
        stage = run.row.test
        settings = {(stage.config, key) for key in (*stage.overrides, *stage.needs)}
        if settings <= named:
            continue
        named |= settings
        with pytest.raises(SystemExit) as ended:
            command_line.read(*run.command("test"), "--print_config")
        assert ended.value.code == 0, f"{run.key}: {capsys.readouterr().err}"


@pytest.mark.parametrize("file", LISTS, ids=lambda file: file.stem)
def test_a_list_of_ours_is_read(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert read_list(file).rows


def write_lists(**lists) -> None:
    """Write lists of rows beside each other, each by its name."""
    for name, rows in lists.items():
        content = {"title": name, "metrics": [{"key": "test/map"}], "rows": rows}
        Path(f"{name}.yaml").write_text(yaml.safe_dump(content))


def needing(row: str) -> dict:
    return {"name": "student", "seeds": [0, 1], "fit": FIT | {"needs": {"weights": row}}}


def test_a_row_may_need_the_checkpoint_of_another_lists_row(read):
    write_lists(teachers=[{"name": "teacher", "fit": FIT, "seeds": [0]}], students=[needing("teachers/teacher")])
    first, second = runs_of(read_list(Path("students.yaml")), "students")
    for run in (first, second):  # the one seed that there is stands in
        assert run.needs["fit"]["weights"].key == "teachers/teacher-seed0"
        assert Path("runs/experiments/teachers/teacher-seed0/fit.json") in run.inputs("fit")
        assert "--weights=runs/experiments/teachers/teacher-seed0/fit/latest/checkpoints/last.ckpt" in run.command(
            "fit"
        )


@pytest.mark.parametrize(
    ("lists", "problem"),
    [
        ({"students": [needing("teachers/teacher")]}, "needs a row of teachers, but there is no such list"),
        ({"teachers": [{"name": "other", "fit": FIT}], "students": [needing("teachers/teacher")]}, "a row above"),
        ({"teachers": [needing("students/student")], "students": [needing("teachers/student")]}, "which needs it"),
    ],
)
def test_a_row_of_another_list_that_cannot_be_is_refused(read, lists, problem):
    write_lists(**lists)
    with pytest.raises(UserError, match=problem):
        read_list(Path("students.yaml"))
