"""The page of the motion's cost: the mAP beside its figures."""

import json
from pathlib import Path

import yaml

from results.benchmarks.motion_speed import mean_ap


def test_runs_that_the_list_does_not_name_any_more_are_left_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("model: {}")
    row = {"name": "decomposed", "fit": {"config": "mine.yaml"}, "seeds": [0, 1]}
    listing = {"title": "Mine", "metrics": [{"key": "test/map"}], "rows": [row]}
    results = Path("results/mine.jsonl")
    (results.parent / "lists").mkdir(parents=True)
    (results.parent / "lists/mine.yaml").write_text(yaml.safe_dump(listing))
    runs = [{"experiment": "decomposed", "seed": seed, "metrics": {"test/map": 0.5}} for seed in (0, 1, 7)]
    results.write_text("".join(json.dumps(run) + "\n" for run in runs))
    assert mean_ap(results, "decomposed") == "50.00 ± 0.00 (2 seeds)"
    assert mean_ap(results, "gone") == "-"
