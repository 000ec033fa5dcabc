"""Pictures and table of students beside their teacher, from folders of runs written by hand."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import yaml
from PIL import Image

from datamodules.errors import UserError
from results.experiments.files import write_json
from results.experiments.lists import read_list
from results.experiments.runs import runs_of
from results.tables import student_pictures
from results.tables.student_gaps import class_table, delay_table
from results.tables.student_results import Comparison, Results, compare

LIST = {
    "title": "Mine",
    "seeds": [0, 1],
    "metrics": [{"key": "test/map"}],
    "rows": [
        {"name": "evad", "title": "teacher", "test": {"config": "mine.yaml"}, "seeds": [0]},
        {"name": "distilled", "title": "DSTA", "fit": {"config": "mine.yaml"}},
        {"name": "alone", "title": "from ground truth", "fit": {"config": "mine.yaml"}},
        {"name": "unfinished", "fit": {"config": "mine.yaml"}},
    ],
}
COMMAND = ["results/lists/list.yaml", "--teacher", "evad", "--students", "distilled", "alone"]
FILES = ["student_classes.png", "student_delays.png", "student_gaps.md", "student_weights.png"]
MEASURED = {
    ("evad", 0): {"test/map": 0.7, "test/ap/walk": 0.8, "test/ap/slow_wave": 0.6, "test/ap/never_seen": None},
    ("distilled", 0): {"test/map": 0.59, "test/ap/walk": 0.78, "test/ap/slow_wave": 0.4},
    ("distilled", 1): {"test/map": 0.61, "test/ap/walk": 0.82, "test/ap/slow_wave": 0.4},
    ("alone", 0): {"test/map": 0.5, "test/ap/walk": 0.5, "test/ap/slow_wave": 0.5},
    ("alone", 1): {"test/map": 0.5, "test/ap/walk": 0.5, "test/ap/slow_wave": 0.5},
}
LATE = {
    ("distilled", 0): {"delay_0": 0.59, "delay_2": 0.60, "delay_2_actions": 0.63, "delay_10_actions": 0.6},
    ("distilled", 1): {"delay_0": 0.61, "delay_2": 0.62, "delay_2_actions": 0.67, "delay_10_actions": 0.6},
    ("alone", 0): {"delay_0": 0.5, "delay_2": 0.4, "delay_2_actions": 0.45},
    ("alone", 1): {"delay_0": 0.5, "delay_2": 0.4, "delay_2_actions": 0.45},
}


def write_csv(file: Path, columns: list[str], *rows: list) -> None:
    file.parent.mkdir(parents=True)
    with file.open("w", newline="") as lines:
        csv.writer(lines).writerows([columns, *rows])


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A list whose last row has no run yet, the runs of all, and what the finished ones leave."""
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("model: {}")
    Path("results/lists").mkdir(parents=True)
    Path("results/lists/list.yaml").write_text(yaml.safe_dump(LIST))
    runs = {(run.row.name, run.seed): run for run in runs_of(read_list(Path("results/lists/list.yaml")), "list")}
    for key, metrics in MEASURED.items():
        run, is_teacher = runs[key], key[0] == "evad"
        late = {f"test/map_{name}": value for name, value in LATE.get(key, {}).items()}
        line = {
            "experiment": key[0],
            "seed": key[1],
            "metrics": metrics | late,
            "benchmark": None,
            "machine": "a computer",
            "time": "2026-01-01",
            "commands": run.commands(),
        }
        write_json(run.folder / "result.json", line)
        if is_teacher:
            continue
        names = ["epoch", "step", "train/loss", "train/weight/boxes"][: 4 if key[0] == "distilled" else 3]
        rows = [[0, 9, 1.0, 1.0], ["", 9, "", ""], [0, 19, 1.0, 5.0]]
        write_csv(run.folder / "fit/version_0/metrics.csv", names, *(row[: len(names)] for row in rows))
    # The second was stopped after step 19 and went on from step 9, ten attempts later.
    resumed = [[1, 19, 1.0, 2.0 + 0.5], [1, 29, 1.0, 3.0]]
    folder = runs["distilled", 1].folder / "fit/version_10"
    write_csv(folder / "metrics.csv", ["epoch", "step", "train/loss", "train/weight/boxes"], *resumed)
    return runs


def test_pictures_and_table_appear_beside_the_list(runs, capsys):
    pytest.importorskip("matplotlib")
    student_pictures.main(COMMAND)
    assert sorted(path.name for path in Path("results/pages").glob("student_*")) == FILES
    for file in Path("results/pages").glob("*.png"):
        with Image.open(file) as picture:
            assert picture.format == "PNG" and picture.width > 500
            assert len(picture.convert("RGB").resize((64, 64)).getcolors(64 * 64)) > 20  # not an empty page
    assert capsys.readouterr().out.count("written to results/pages/student_") == len(FILES)


def test_the_table_has_the_gaps_of_classes_and_delays(runs):
    pytest.importorskip("matplotlib")
    student_pictures.main(COMMAND)
    page = Path("results/pages/student_gaps.md").read_text()
    # 78 and 82 deviate by 2 * sqrt(2); the widest gap of the first student comes first.
    expected = """
| class     |   teacher |               DSTA |   from ground truth |
|:----------|----------:|-------------------:|--------------------:|
| slow wave |      60.0 |       40.0 (-20.0) |        50.0 (-10.0) |
| walk      |      80.0 |  80.0 ± 2.8 (+0.0) |        50.0 (-30.0) |
| mAP       |      70.0 | 60.0 ± 1.4 (-10.0) |        50.0 (-20.0) |
"""
    assert expected in page
    # Two frames late, the actions of the first student close 65 - 60 of 70 - 60.
    expected = """
|                                 |      k = 0 |      k = 2 |   k = 10 |   gap closed |
|:--------------------------------|-----------:|-----------:|---------:|-------------:|
| teacher                         |       70.0 |            |          |              |
| DSTA, actions late              | 60.0 ± 1.4 | 65.0 ± 2.8 |     60.0 |    50 % at 2 |
| DSTA, all late                  | 60.0 ± 1.4 | 61.0 ± 1.4 |        - |    10 % at 2 |
| from ground truth, actions late |       50.0 |       45.0 |        - |     0 % at 0 |
| from ground truth, all late     |       50.0 |       40.0 |        - |     0 % at 0 |
"""
    assert expected in page
    assert "other arguments" not in page


def test_a_teacher_without_the_figure_of_a_run_says_so_in_both_tables(runs):
    teacher, *students = (Results(run.row, [run], []) for run in (runs["evad", 0], runs["distilled", 0]))
    lines = [{"metrics": {"test/map": value, "test/ap/walk": 0.5}} for value in (0.7, None)]
    students = [one._replace(lines=[{"metrics": {"test/map_delay_0": 0.5}}]) for one in students]
    compared = Comparison(read_list(Path("results/lists/list.yaml")), teacher._replace(lines=lines), students, "")
    assert "70.0 (1 of 2)" in class_table(compared) and "70.0 (1 of 2)" in delay_table(compared)


def test_weights_of_resumed_training_are_those_that_were_gone_on_with(runs):
    distilled, alone = compare(Path("results/lists/list.yaml"), "evad", ["distilled", "alone"]).students
    assert distilled.weights() == {"boxes": [([9, 19], [1.0, 5.0]), ([9, 19, 29], [1.0, 2.5, 3.0])]}
    assert alone.weights() == {}


def test_figures_of_other_commands_are_counted(runs):
    listed = yaml.safe_load(Path("results/lists/list.yaml").read_text())
    listed["rows"][2]["fit"]["overrides"] = {"new": 1}
    Path("results/lists/list.yaml").write_text(yaml.safe_dump(listed))
    compared = compare(Path("results/lists/list.yaml"), "evad", ["distilled", "alone"])
    assert compared.other_commands.startswith("2 of 5 runs were started with other arguments")


@pytest.mark.parametrize("names", [["unfinished"], ["distilled", "unfinished"]])
def test_a_missing_run_is_told_with_its_command(runs, names):
    files = "runs/experiments/list/unfinished-seed0/result.json runs/experiments/list/unfinished-seed1/result.json"
    expected = f"no result of unfinished, seed 0; unfinished, seed 1; run snakemake -s .* {files}$"
    with pytest.raises(UserError, match=expected):
        student_pictures.main(["results/lists/list.yaml", "--teacher", "evad", "--students", *names])


@pytest.mark.slow
def test_some_seeds_are_shown_alone_and_the_others_not_asked_for(runs):
    for name in ("distilled", "alone"):
        (runs[name, 1].folder / "result.json").unlink()
    student_pictures.main([*COMMAND, "--seeds", "0"])
    page = Path("results/pages/student_gaps.md").read_text()
    assert "59.0 (-11.0)" in page and "±" not in page.split("## By delay")[0].split("\n\n", 3)[-1]


def test_a_training_whose_folder_is_gone_is_left_out_of_the_weights_alone_and_told(runs, capsys):
    pytest.importorskip("matplotlib")
    student_pictures.main(COMMAND)
    whole = Path("results/pages/student_gaps.md").read_text()
    (runs["distilled", 1].folder / "fit/version_0/metrics.csv").unlink()
    (runs["distilled", 1].folder / "fit/version_10/metrics.csv").unlink()
    capsys.readouterr()
    student_pictures.main(COMMAND)
    told = capsys.readouterr()
    assert told.err.startswith("no metrics.csv of the training of distilled, seed 1: left out of student_weights.png")
    assert (
        "distilled-seed1/result.json makes it" in told.err
        and "written to results/pages/student_weights.png" in told.out
    )
    assert Path("results/pages/student_gaps.md").read_text() == whole


def test_an_unknown_row_is_told_with_those_there_are(runs):
    with pytest.raises(UserError, match="there is no row tsa; it has evad, distilled, alone, unfinished"):
        student_pictures.main(["results/lists/list.yaml", "--teacher", "evad", "--students", "tsa"])


def test_students_without_delays_are_told_what_to_add(runs):
    for seed in (0, 1):
        file = runs["alone", seed].folder / "result.json"
        text = file.read_text().replace("map_delay", "map_late")
        file.write_text(text)
    with pytest.raises(UserError, match=r"tests of alone scored no delays; .*scored_delays.*alone-seed1/result.json$"):
        student_pictures.main(COMMAND)


def test_students_that_weigh_no_tasks_have_the_other_pictures_and_that_is_told(runs, capsys):
    pytest.importorskip("matplotlib")
    student_pictures.main(["results/lists/list.yaml", "--teacher", "evad", "--students", "alone"])
    assert capsys.readouterr().err.startswith("no student_weights.png: none of the students has logged train/weight")
    assert not Path("results/pages/student_weights.png").exists() and Path("results/pages/student_classes.png").exists()
