import json

import pytest
import torch

from datamodules.errors import UserError
from lightning_modules.metrics.segment_map import SegmentMeanAveragePrecision
from lightning_modules.metrics.segment_results import of_true_videos, read_results, score_results, write_results

NAMES = ("jump", "throw")


def some_results():
    generator = torch.Generator().manual_seed(0)
    return {
        video: {
            "segments": torch.rand(count, 2, dtype=torch.float64, generator=generator).sort(dim=1).values * 100,
            "scores": torch.rand(count, dtype=torch.float64, generator=generator),
            "labels": torch.randint(0, 2, (count,), generator=generator),
        }
        for video, count in (("first", 7), ("nothing found", 0), ("second", 3))
    }


def test_what_was_written_is_read_again_to_the_last_bit(tmp_path):
    results = some_results()
    write_results(tmp_path / "folder" / "found.json", results, NAMES, external_data={"weights": "a.pt"})
    again = read_results(tmp_path / "folder" / "found.json", NAMES)
    assert list(again) == list(results)
    for video, detections in results.items():
        for name, column in detections.items():
            torch.testing.assert_close(again[video][name], column, rtol=0, atol=0)
    assert [file.name for file in (tmp_path / "folder").iterdir()] == ["found.json"]


def test_the_file_has_the_form_of_the_challenge(tmp_path):
    found = {"x": {"segments": torch.tensor([[1.5, 2.0]]), "scores": torch.tensor([0.5]), "labels": torch.tensor([1])}}
    write_results(tmp_path / "found.json", found, NAMES)
    record = json.loads((tmp_path / "found.json").read_text())
    assert record == {
        "version": "onlooker",
        "results": {"x": [{"label": "throw", "score": 0.5, "segment": [1.5, 2.0]}]},
        "external_data": {},
    }


def test_saved_detections_score_as_they_did_whatever_their_order_and_prefix(tmp_path):
    results = some_results()
    truth = {
        name: {"segments": video["segments"][:2] + 0.5, "labels": video["labels"][:2]}
        for name, video in results.items()
    }
    metric = SegmentMeanAveragePrecision(2)
    metric.update(list(results.values()), list(truth.values()))
    before = metric.compute()
    write_results(tmp_path / "found.json", {f"v_{name}": results[name] for name in reversed(results)}, NAMES)
    after = score_results(read_results(tmp_path / "found.json", NAMES), truth, SegmentMeanAveragePrecision(2))
    assert after["map"] == before["map"] > 0
    assert after["num_other_videos"] == 0 and after["protocol"] == metric.protocol


def test_the_ground_truth_chooses_the_videos():
    results = some_results()
    truth = {
        name: {key: results["first"][key] for key in ("segments", "labels")} for name in ("first", "not in the file")
    }
    with pytest.warns(UserWarning, match="1 of 2 videos of the ground truth are not in the file and count as missed"):
        scored = score_results(results, truth, SegmentMeanAveragePrecision(2))
    assert scored["num_videos"] == 2 and scored["num_other_videos"] == 2
    # All of the first video is found and none of the other: half of each class, at precision 1.
    assert scored["map"].item() == pytest.approx(0.5)
    with pytest.raises(ValueError, match=r"none of the 1 videos to evaluate .* called third there and first here"):
        score_results(results, {"third": truth["first"]}, SegmentMeanAveragePrecision(2))


def test_detections_of_other_programs_are_read(tmp_path):
    rows = [
        {"label": "jump", "score": "0.5", "segment": ["1", "2.5"]},
        {"label": "dive", "score": 1, "segment": [0, 1]},
    ]
    (tmp_path / "found.json").write_text(json.dumps({"results": {"x": rows}}))
    with pytest.warns(UserWarning, match=r"found\.json: 1 of 2 detections are left out: 1 class names .* \(dive\)"):
        found = read_results(tmp_path / "found.json", NAMES)["x"]
    assert found["segments"].tolist() == [[1, 2.5]] and found["scores"].tolist() == [0.5]
    assert found["labels"].tolist() == [0]


def test_videos_that_a_file_lacks_are_named_whatever_their_prefix():
    results = some_results()
    with pytest.warns(UserWarning) as said:
        of_true_videos(results, dict.fromkeys(("v_first", "v_third", "nothing found"), results["first"]), "found.json")
    assert [str(warning.message) for warning in said] == [
        "found.json: 1 of 3 videos of the ground truth are not in the file and count as missed: v_third"
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not json"),
        ("[]", 'has no "results"'),
        ('{"results": {"x": [{"label": "jump", "score": 1}]}}', "a detection of x"),
        ('{"results": {"x": [{"label": "jump", "score": NaN, "segment": [0, 1]}]}}', "no finite score"),
        ('{"results": {"x": [{"label": "jump", "score": 1, "segment": [0]}]}}', "no finite score"),
        (
            '{"results": {"x": [{"label": "jump", "score": 1, "segment": [30, 20]}]}}',
            r"a detection of x ends before it starts, \[30.0, 20.0\]; write start and end",
        ),
        ('{"results": {"x": [{"label": ["jump"], "score": 1, "segment": [0, 1]}]}}', "no name"),
        ('{"results": {"x": [{"label": "7", "score": 1, "segment": [0, 1]}]}}', "none of the 2 classes"),
    ],
)
def test_a_broken_file_is_named(tmp_path, text, words):
    (tmp_path / "found.json").write_text(text)
    with pytest.raises(UserError, match=words) as error:
        read_results(tmp_path / "found.json", NAMES)
    assert "found.json" in str(error.value)
    with pytest.raises(UserError, match=r"absent\.json: no such file"):
        read_results(tmp_path / "absent.json", NAMES)


def test_a_score_that_is_no_number_is_not_written(tmp_path):
    bad = {"x": {"segments": torch.ones(1, 2), "scores": torch.tensor([float("nan")]), "labels": torch.tensor([0])}}
    with pytest.raises(ValueError, match="JSON"):
        write_results(tmp_path / "found.json", bad, NAMES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("side", ["results", "truth"])
def test_names_that_differ_by_their_prefix_alone_are_refused_and_not_half_scored(side):
    one = {"segments": torch.tensor([[0.0, 1]]), "labels": torch.tensor([0])}
    found = one | {"scores": torch.tensor([0.5])}
    results, truth = {"x": found}, {"v_x": one}
    metric = SegmentMeanAveragePrecision(1)
    assert score_results(results, truth, metric)["map"] == 1
    if side == "results":
        results["v_x"] = found
    else:
        truth["x"] = one
    with pytest.raises(UserError, match="there are both a video x and a video v_x; rename one of them"):
        score_results(results, truth, metric)
