"""The picture of the benchmark table: which rows it shows, and that it is one."""

import pytest
from PIL import Image

from results.benchmarks.latency_map import draw, drawn_rows

ROW = {
    "experiment": "evad",
    "map": 0.8,
    "speedup": None,
    "gflops_unit": "clip",
    "device": "one CPU",
    "threads": 2,
    "protocol": "ava frame mAP@0.5, stride 2",
}


def test_it_shows_the_newest_row_of_each_experiment_measured_alike():
    older, other_machine = ROW | {"map": 0.5}, ROW | {"experiment": "tsa", "device": "another"}
    unscored, newest = ROW | {"experiment": "dsta", "map": None}, ROW | {"map": 0.7}
    student = ROW | {"experiment": "distill_tsa", "gflops_unit": "frame"}
    drawn = drawn_rows([older, other_machine, unscored, student, newest])
    assert [(row["experiment"], row["map"]) for row in drawn] == [("evad", 0.7), ("distill_tsa", 0.8)]


def test_answers_that_come_late_stand_beside_others_scored_alike():
    late = ROW | {"experiment": "tsa", "protocol": "ava frame mAP@0.5, stride 2, answers 2 frames late"}
    other = ROW | {"experiment": "dsta", "protocol": "ava frame mAP@0.5, stride 4"}
    drawn = drawn_rows([other, late, ROW])
    assert [(row["experiment"], row["late"]) for row in drawn] == [("tsa", "2 frames late"), ("evad", "")]


def test_it_is_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    draw([ROW, ROW | {"experiment": "tsa", "gflops_unit": "frame", "speedup": 3.0}], tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as picture:
        assert picture.format == "PNG" and picture.width > 500


def test_a_table_without_accuracy_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(ValueError, match=r"main\.py test"):
        draw([ROW | {"map": None}], tmp_path / "map.png")
