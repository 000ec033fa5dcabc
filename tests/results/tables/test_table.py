"""The table of a list: its arithmetic, its lines of JSON, its Markdown and its picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from datamodules.errors import UserError
from results.experiments.files import write_json
from results.experiments.lists import read_list
from results.experiments.runs import runs_of
from results.tables.__main__ import publish
from results.tables.picture import draw
from results.tables.table import cell, collect, table_page, unknown_metrics

LIST = {
    "title": "Mine",
    "description": "What was done.",
    "seeds": [0, 1, 2],
    "metrics": [
        {"key": "test/map", "title": "mAP %", "percent": True, "drawn": True},
        {"key": "benchmark/gflops", "title": "GFLOPs", "digits": 1},
    ],
    "rows": [
        {"name": "one", "title": "the first", "fit": {"config": "mine.yaml", "overrides": {"a": [1, 2]}}},
        {"name": "two", "test": {"config": "mine.yaml", "needs": {"ckpt_path": "one"}}, "seeds": [0]},
        {"name": "three", "fit": {"config": "mine.yaml"}},
    ],
}


@pytest.fixture
def listed(tmp_path, monkeypatch):
    """The list, its runs, and lines as three runs of the first row and one of the second leave them."""
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("model: {}")
    Path("list.yaml").write_text(yaml.safe_dump(LIST))
    listing = read_list(Path("list.yaml"))
    runs = runs_of(listing, "list")
    commands = {(run.row.name, run.seed): run.commands() for run in runs}

    def line(name: str, seed: int, value: float, gflops: float | None, minutes: float | None) -> dict:
        return {
            "experiment": name,
            "seed": seed,
            "metrics": {"test/map": value},
            "benchmark": gflops and {"gflops": gflops},
            "fit_seconds": minutes and 60 * minutes,
            "fit_precision": "bf16-mixed",
            "test_precision": "32-true",
            "fit_commit": "abc",
            "commit": "def",
            "machine": "a computer",
            "threads": 1,
            "jobs": 2,
            "time": f"2026-01-0{seed + 1}",
            "commands": commands[name, seed],
        }

    ones = [line("one", seed, value, 2.0, 10.0 + seed) for seed, value in enumerate((0.5, 0.6, 0.7))]
    return listing, runs, [*ones, line("two", 0, 0.41234, None, None)]


def test_the_table_is_means_and_sample_deviations_in_aligned_columns(listed):
    page = table_page(Path("list.yaml"), *listed)
    # Of 50, 60, 70 the squares about the mean are 100 + 0 + 100, over two is 100, its root 10.
    expected = """
| experiment   |         mAP % |   GFLOPs |   training min |   n |
|:-------------|--------------:|---------:|---------------:|----:|
| the first    | 60.00 ± 10.00 |      2.0 |           11.0 |   3 |
| two          |         41.23 |        - |              - |   1 |
| three        |             - |        - |              - |   - |
"""
    assert expected in page
    assert page.startswith("# Mine\n\nWhat was done.\n\n| experiment")
    assert "- a computer; threads a run: 1, runs at a time: 2; precision of training: bf16-mixed" in page
    assert "- commits abc, def" in page


def test_a_value_that_only_some_runs_have_says_so():
    assert cell([], 2, 3) == "-"
    assert cell([1.0], 2, 1) == "1.00"
    assert cell([1.0, 2.0], 1, 2) == "1.5 ± 0.7"
    assert cell([1.0, 2.0], 1, 3) == "1.5 ± 0.7 (2 of 3)"


def test_a_value_that_every_run_has_alike_has_no_spread():
    assert cell([0.277, 0.277, 0.277], 3, 3) == "0.277"


def test_threads_and_runs_at_a_time_of_training_are_told_where_the_test_had_others(listed):
    listing, runs, lines = listed
    alike = {"fit_threads": 1, "fit_jobs": 2}
    lines = [lines[0] | alike, lines[1] | {"fit_threads": 4, "fit_jobs": 1}, *lines[2:]]
    page = table_page(Path("list.yaml"), listing, runs, lines)
    assert "- a computer; threads a run: 1, runs at a time: 2; precision" in page
    assert "- a computer; threads a run: 4 in training and 1 in the test, runs at a time: 1 in training and 2" in page


def test_a_commit_of_several_runs_is_named_once(listed):
    listing, runs, lines = listed
    lines[0]["fit_commit"] = "abc, older"  # of a training that was resumed
    assert "- commits abc, older, def\n" in table_page(Path("list.yaml"), listing, runs, lines)


def test_the_page_has_the_commands_of_every_row(listed):
    page = table_page(Path("list.yaml"), *listed)
    runs = "runs/experiments/list"
    checkpoint = f"{runs}/one-seed0/fit/latest/checkpoints/last.ckpt"
    assert (
        f"""the first:
```sh
python main.py fit --config=mine.yaml --seed_everything=0 --name=experiments/list/one-seed0/fit '--a=[1, 2]'
python main.py test --config=mine.yaml --seed_everything=0 --name=experiments/list/one-seed0/test '--a=[1, 2]' \
--ckpt_path={checkpoint} --table_folder={runs}/one-seed0/test
```"""
        in page
    )
    assert f"--ckpt_path={checkpoint} --table_folder={runs}/two-seed0/test" in page


def test_a_row_whose_settings_are_gone_keeps_its_figures_and_names_the_tag_that_has_them(listed):
    content = LIST | {"rows": [{**LIST["rows"][0], "tag": "before-parts"}]}
    Path("list.yaml").write_text(yaml.safe_dump(content))
    listing = read_list(Path("list.yaml"))
    lines = [line | {"commands": [["fit", "--other=1"]]} for line in listed[2]]
    page = table_page(Path("list.yaml"), listing, runs_of(listing, "list"), lines)
    assert "| the first    | 60.00 ± 10.00 |" in page
    assert "the first: not run any more; the page of this list at the tag `before-parts` has its command." in page
    assert "python main.py" not in page and "other arguments" not in page


def test_figures_of_other_commands_are_counted(listed):
    listing, runs, lines = listed
    assert "other arguments" not in table_page(Path("list.yaml"), listing, runs, lines)
    lines[1]["commands"] = [["fit", "--other=1"]]
    assert "1 of 4 runs were started with other arguments" in table_page(Path("list.yaml"), listing, runs, lines)


def test_the_newest_result_of_each_run_is_kept_in_the_order_of_the_list(listed):
    _, runs, lines = listed
    file = Path("list.jsonl")
    old = lines[1] | {"time": "2025", "metrics": {"test/map": 0.1}}
    gone = lines[0] | {"experiment": "of an earlier list"}
    file.write_text("".join(json.dumps(line) + "\n" for line in (gone, lines[3], old, lines[0])))
    write_json(Path("runs/experiments/list/one-seed1/result.json"), lines[1])
    write_json(Path("runs/experiments/list/one-seed0/result.json"), lines[0] | {"time": "2024"})
    assert collect(file, runs) == [lines[0], lines[3], lines[1], gone]
    assert [json.loads(line) for line in file.read_text().splitlines()] == [lines[0], lines[3], lines[1], gone]


def test_without_results_nothing_is_written(listed):
    assert collect(Path("list.jsonl"), listed[1]) == []
    assert not Path("list.jsonl").exists()


def test_a_column_that_no_run_has_is_told_with_those_there_are(listed):
    listing, _, lines = listed
    assert unknown_metrics(listing, lines) == []
    without = [line | {"benchmark": None} for line in lines]
    assert unknown_metrics(listing, without) == ["no run has benchmark/gflops; they have test/map"]


def test_the_picture_is_one(listed):
    pytest.importorskip("matplotlib")
    listing, _, lines = listed
    draw(listing, lines, Path("list.png"))
    with Image.open("list.png") as picture:
        assert picture.format == "PNG" and picture.width > 500


def test_a_list_has_its_results_beside_its_folder_and_its_pages_in_theirs(listed, capsys):
    pytest.importorskip("matplotlib")
    *_, lines = listed
    file = Path("results/lists/list.yaml")
    file.parent.mkdir(parents=True)
    Path("list.yaml").rename(file)
    with pytest.raises(UserError, match="no run has come to its end yet; run snakemake list"):
        publish(file)
    write_json(Path("runs/experiments/list/one-seed1/result.json"), lines[1])
    publish(file)
    assert [json.loads(line) for line in Path("results/list.jsonl").read_text().splitlines()] == [lines[1]]
    assert "| the first" in Path("results/pages/list.md").read_text()
    assert Path("results/pages/list.png").is_file()
    assert capsys.readouterr().out == "written to results/pages/list.md\n"
