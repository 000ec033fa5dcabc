"""The mean over splits, of rows as the benchmark writes them."""

import json
from dataclasses import asdict, replace

import pytest

from callbacks.benchmark.rows import BenchmarkRow, enter
from callbacks.benchmark.split_mean import main, mean_row
from datamodules.errors import UserError

ROW = {
    "protocol": "pascal frame mAP@0.5, stride 2",
    "parameters": 100,
    "gflops": 1.5,
    "gflops_published": None,
    "gflops_unit": "clip",
    "uncounted_operators": [],
    "latency_p50_ms": 10.0,
    "latency_p95_ms": 11.0,
    "latency_p99_ms": 12.0,
    "frames_per_second": 100.0,
    "state_mib": 0.0,
    "device": "CPU",
    "threads": 2,
    "precision": "32-true",
    "commit": "abc",
    "time": "2024-01-01",
    "speedup": None,
}
SPLITS = [
    {**ROW, "experiment": "jhmdb_1", "weights": "a/1.ckpt", "map": 0.75, "seed": 0},
    {**ROW, "experiment": "jhmdb_2", "weights": "a/2.ckpt", "map": 0.5, "seed": 0, "latency_p50_ms": 16.0},
    {**ROW, "experiment": "jhmdb_3", "weights": "a/3.ckpt", "map": 0.25, "seed": 1},
]
ROWS = [BenchmarkRow.from_record(row) for row in SPLITS]
NAMES = [row["experiment"] for row in SPLITS]


def test_fractions_are_averaged_equal_things_kept_and_others_listed():
    mean = asdict(mean_row(ROWS, "jhmdb"))
    assert mean["experiment"] == "jhmdb"
    assert mean["protocol"] == "pascal frame mAP@0.5, stride 2, mean of 3 splits"
    assert mean["map"] == pytest.approx(0.5)
    assert mean["latency_p50_ms"] == pytest.approx(12.0)
    assert (mean["gflops"], mean["parameters"], mean["speedup"]) == (1.5, 100, None)
    assert (mean["weights"], mean["seed"]) == ("a/1.ckpt, a/2.ckpt, a/3.ckpt", "0, 0, 1")


def test_the_newest_row_of_each_split_is_taken_and_the_table_shows_their_mean(tmp_path, capsys):
    older = {**SPLITS[0], "map": 0.0}
    (tmp_path / "benchmark.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (older, *SPLITS)))
    main([*NAMES, "--name", "jhmdb", "--folder", str(tmp_path)])
    rows = [json.loads(line) for line in (tmp_path / "benchmark.jsonl").read_text().splitlines()]
    assert len(rows) == 5
    assert rows[-1]["map"] == pytest.approx(0.5)
    assert any(line.startswith("| jhmdb ") and "50.00" in line for line in capsys.readouterr().out.splitlines())
    page = (tmp_path / "benchmark.md").read_text()
    (line,) = [line for line in page.splitlines() if line.startswith("| jhmdb ")]
    assert [cell.strip() for cell in line.split("|")][3:5] == [
        "pascal frame mAP@0.5, stride 2, mean of 3 splits",
        "50.00",
    ]


def test_a_number_that_one_split_lacks_has_no_mean_and_the_table_can_be_read_on(tmp_path):
    rows = [replace(ROWS[0], speedup=2.0, video_protocol=None), *ROWS[1:]]
    assert mean_row(rows, "jhmdb").speedup is None
    broken = replace(ROWS[0], speedup="2.0, None")
    with pytest.raises(ValueError, match="format code"):
        enter(tmp_path, broken)
    enter(tmp_path, ROWS[0])  # the one before was not kept
    assert len((tmp_path / "benchmark.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video_protocol": "act"}, "jhmdb_3 has video_protocol 'act', jhmdb_1 has None"),
        ({"protocol": "act frame mAP@0.5"}, "jhmdb_3 has protocol 'act frame mAP@0.5', jhmdb_1 has 'pascal"),
        ({"parameters": 7}, "jhmdb_3 has parameters 7, jhmdb_1 has 100: only results of one network"),
        ({"frame": "256 x 320"}, "jhmdb_3 has frame '256 x 320', jhmdb_1 has None: only results of one network"),
        ({"map": None}, "jhmdb_3 has no mAP"),
    ],
)
def test_rows_that_do_not_belong_together_are_refused(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        mean_row([*ROWS[:2], replace(ROWS[2], **change)], "jhmdb")
    (tmp_path / "benchmark.jsonl").write_text(json.dumps(SPLITS[0]) + "\n")
    with pytest.raises(UserError, match="has no row of jhmdb_2, jhmdb_3; test it with --name jhmdb_2"):
        main([*NAMES, "--name", "jhmdb", "--folder", str(tmp_path)])


def test_one_split_has_no_mean(tmp_path, capsys):
    for names in (["jhmdb_1"], ["jhmdb_1", "jhmdb_1"]):
        with pytest.raises(SystemExit):
            main([*names, "--name", "jhmdb", "--folder", str(tmp_path)])
        assert "name at least two experiments, each once" in capsys.readouterr().err
