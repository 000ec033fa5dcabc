"""The page of EVAD's speed: rendered from figures, part by part."""

import json
import re

import torch

from results.benchmarks import evad_speed
from results.benchmarks import page as pages
from tests.networks.tiny import tiny_teacher


def test_the_time_ratio_is_taken_round_by_round():
    samples = {"ours": (1.0, 4.0, 3.0), "published": (2.0, 5.0, 12.0)}  # 0.5, 0.8, 0.25
    latencies = {name: type("L", (), {"samples": values}) for name, values in samples.items()}
    assert pages.row_ratio(type("T", (), {"latencies": latencies}), "ours", "published") == 0.5


def test_errors_of_boxes_are_relative_to_their_size():
    teacher = tiny_teacher()
    with torch.no_grad():
        expected = teacher.outputs(torch.randn(1, 3, 8, 64, 64))
    true = expected.boxes[-1]
    size = (true[0, 0, 2:] - true[0, 0, :2]).max()
    moved = expected.boxes.clone()
    moved[-1, 0, 0, 1] += 0.25 * size
    found = expected._replace(boxes=moved)
    boxes, actions = evad_speed.difference(found, expected)
    assert abs(boxes - 0.25) < 1e-3 and actions == 0


def test_parts_measured_at_different_times_share_a_page(tmp_path, monkeypatch, capsys):
    training = [{"setting": "0.7", "recompute": True, "seconds": 8.0, "faster_than_keep_1": 1.9, "mib": 100.0}]
    record = tmp_path / "speed.json"
    record.write_text(
        json.dumps({"side": 288, "training": {"machine": "first machine", "rounds": 2, "rows": training}})
    )
    modes = [
        {
            "setting": "0.7",
            "mode": "bf16",
            "forward_ratio": 0.5,
            "training_ratio": 0.6,
            "error_boxes": 1e-3,
            "error_actions": 2e-3,
            "error_gradients": 3e-2,
            "first_call_s": 4.0,
        }
    ]
    arguments = ["evad_speed", "--parts", "autocast", "--out", str(tmp_path / "speed.md"), "--device", "cpu"]

    def run() -> None:
        pages.main(
            "",
            evad_speed.HEADER,
            evad_speed.PARTS,
            lambda *_: modes,
            side=288,
            rounds=5,
            out="unused.md",
        )

    monkeypatch.setattr("sys.argv", arguments)
    run()
    page = re.sub(" +", " ", (tmp_path / "speed.md").read_text())
    assert "| 0.7 | yes | 8.00 | 1.90x | 100 |" in page and "first machine; 2 rounds" in page
    assert "| 0.7 | bf16 | 0.500 | 0.600 | 1.0e-03 / 2.0e-03 | 3.0e-02 | 4 |" in page
    assert set(json.loads(record.read_text())) == {"side", "training", "autocast"}

    monkeypatch.setattr("sys.argv", [*arguments, "--side", "64"])
    run()
    assert "Training step" not in (tmp_path / "speed.md").read_text()
