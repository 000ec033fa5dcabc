"""Detections that ``test`` saves are scored again without the model, and so are those of other programs."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from jsonargparse import Namespace

from callbacks.files.detection_file import DetectionFile, rows
from datamodules.annotations.ava import Ava
from datamodules.annotations.own_videos import OwnVideos
from datamodules.batches import TrueKeyframe
from datamodules.errors import UserError
from lightning_modules.clip_detection import ClipDetectionModule
from lightning_modules.command_line.settings import Settings
from lightning_modules.commands.score import take_protocols
from lightning_modules.commands.score_boxes import rows_of_file, score_file, score_since_start
from lightning_modules.metrics.frame_ap import FrameMapSettings
from lightning_modules.metrics.frame_map import FrameMeanAveragePrecision, action_rows
from lightning_modules.metrics.frame_results import read_frame_detections
from lightning_modules.networks.detection.outputs import ScoredBoxes
from lightning_modules.networks.weights.loading import save_weights
from lightning_modules.stream_detection import StreamDetectionModule
from main import main
from tests.datamodules import miniature_ava
from tests.flat_data import grouped
from tests.lightning_modules import tiny
from tests.networks.tiny import teacher_config
from tests.test_ddp import on_two_processes

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")  # where pytest has arguments itself


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("score")


@pytest.fixture(scope="module")
def source(folder):
    """Six videos of two shapes; 28 keyframes on four of them are evaluated."""
    source = tiny.videos(folder)
    source.prepare()
    return source


def placed(build):
    network = build()
    tiny.place_proposals(network)
    return network


KINDS = {
    "clip": (lambda: ClipDetectionModule(placed(tiny.teacher)), tiny.clips),
    "stream": (lambda: StreamDetectionModule(placed(tiny.student)), tiny.streams),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("action", ["test", "validate"])
def test_what_is_saved_scores_as_it_did(kind, action, source, folder, tmp_path):
    module, data = KINDS[kind][0](), KINDS[kind][1](source, folder / "cache")
    file = DetectionFile(tmp_path / "new" / "predictions.csv")
    (scores,) = getattr(tiny.trainer(tmp_path, callbacks=[file]), action)(module, datamodule=data, verbose=False)
    score = score_file(file.path, data.true_keyframes("test"), 2)
    prefix = "test" if action == "test" else "val"
    assert 0 < score.result.mean < 1
    assert score.result.mean == pytest.approx(scores[f"{prefix}/map"], abs=1e-6)  # logged in float32
    assert score.result.per_class.tolist() == pytest.approx([scores[f"{prefix}/ap/{n}"] for n in ("walk", "wave")])
    assert score.num_detections == score.result.num_frames * 4 * 2  # proposals and classes
    assert score.num_found_frames == score.result.num_frames
    assert sorted(path.name for path in file.path.parent.iterdir()) == ["predictions.csv"]


@pytest.mark.parametrize("kind", KINDS)
def test_saved_numbers_are_those_of_the_metric_to_the_last_bit(kind, source, folder, tmp_path):
    module, data = KINDS[kind][0](), KINDS[kind][1](source, folder / "cache")
    file, seen = DetectionFile(tmp_path / "predictions.csv"), {}

    class States(tiny.L.Callback):
        def on_test_epoch_end(self, trainer, module):
            for name in ("pred_boxes", "pred_scores", "target_boxes"):
                seen[name] = torch.cat(getattr(module.evaluator.metric, name)).numpy()

    tiny.trainer(tmp_path, callbacks=[States(), file]).test(module, datamodule=data, verbose=False)
    found, keyframes = read_frame_detections(file.path), data.true_keyframes("test")
    sizes = {keyframe.video_id: keyframe.original_size for keyframe in keyframes}
    height, width = np.asarray([sizes[found.names[video]] for video in found.videos]).T
    pixels = (found.boxes * np.stack([width, height, width, height], axis=1)).astype(np.float32)
    assert (pixels[::2].astype(np.float64) == seen["pred_boxes"]).all()  # two actions a box
    assert (found.scores.astype(np.float32) == seen["pred_scores"]).all()
    truth = np.concatenate([keyframe.boxes[np.nonzero(keyframe.labels)[0]] for keyframe in keyframes])
    order, other = (np.lexsort(boxes.T) for boxes in (truth, seen["target_boxes"]))
    assert (truth[order].astype(np.float64) == seen["target_boxes"][other]).all()


# ---------------------------------------------------------------------------------------------------------------------
# The command line.


@pytest.fixture(scope="module")
def config(folder, source) -> Path:
    """A tiny teacher on the numbered videos, read as somebody's own.

    27 keyframes are evaluated, 20 of one shape and 7 of another: 7 batches of at most 4, which two processes share
    unevenly.
    """
    network = teacher_config(tiny.SHAPES | {"keep_rates": {1: 0.8}})
    (folder / "classes.txt").write_text("walk\nwave\n")
    with (folder / "boxes.csv").open("w", newline="") as file:
        for split in ("train", "val"):
            for video in source.videos(split):
                for moment in video.keyframes[: -1 if video.video_id == "video_5" else None]:
                    for person, (box, labels) in enumerate(zip(moment.boxes, moment.labels, strict=True)):
                        for action in np.flatnonzero(labels):
                            row = [video.video_id, moment.timestamp + 10, *box.tolist(), action + 1, person]
                            csv.writer(file).writerow(row)
    own = {"videos": folder, "annotations": folder / "boxes.csv", "classes": folder / "classes.txt"}
    own = {name: str(path) for name, path in own.items()} | {"train": ["video_0", "video_1"], "start_seconds": 10}
    own = {"class_path": "datamodules.annotations.own_videos.OwnVideos", "init_args": own}
    data = {"source": own, "num_frames": 4, "frame_stride": 2, "batch_size": 4}
    save_weights(placed(tiny.teacher).state_dict(), folder / "weights.pt")
    experiment = {
        "model": {
            "class_path": "lightning_modules.clip_detection.ClipDetectionModule",
            "init_args": {
                "network": network,
                "weights": str(folder / "weights.pt"),
                "detection": {"metric": {"protocol": "act", "unlabelled_frames": "ignore"}},
            },
        },
        "data": {
            "class_path": "datamodules.clip.ClipDataModule",
            "init_args": grouped(data | {"short_side": 64, "cache": str(folder / "cache")}),
        },
    }
    (folder / "mine.yaml").write_text(yaml.safe_dump(experiment))
    return folder / "mine.yaml"


QUIET = ("--trainer.enable_progress_bar=false", "--trainer.logger=false", "--trainer.accelerator=cpu")
QUIET += ("--trainer.enable_model_summary=false", "--trainer.callbacks=[]")
SAVE = "--trainer.callbacks+=callbacks.files.detection_file.DetectionFile"


@pytest.mark.slow
def test_the_command_line_scores_what_test_saved_under_the_configs_protocol(config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cli = main(["test", f"--config={config}", *QUIET, SAVE])
    mean_ap = float(cli.trainer.callback_metrics["test/map"])
    assert cli.model.protocol == "act frame mAP@0.5, labelled frames only, stride 2"
    first = Path("predictions.csv").read_text().splitlines()[0].split(",")
    assert len(first) == 8 and float(first[1]) >= 10  # the csv's seconds, not the file's
    capsys.readouterr()
    # Scoring needs no weights, no cache and not the network's sizes.
    without = ["--model.init_args.weights=nowhere.pt", "--data.init_args.frames.cache=nowhere"]
    main(["score", f"--config={config}", *QUIET, *without, "--predictions=predictions.csv"])
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"act frame mAP@0.5, labelled frames only: {100 * mean_ap:.2f} %"
    assert said[1].startswith("ground truth: 27 frames, 81 boxes, 2 classes; detections: 216 on 27 frames")
    assert [line.split()[1:] for line in said[-2:]] == [["54", "walk"], ["27", "wave"]]
    assert not Path("nowhere").exists()
    main(["score", f"--config={config}", *QUIET, "--predictions=predictions.csv", "--metric.protocol=ava"])
    other = capsys.readouterr().out.splitlines()[0]
    assert other.startswith("ava frame mAP@0.5, labelled frames only: ")  # the rest is the config's


@pytest.mark.slow
def test_the_command_line_scores_by_the_time_since_the_start(config, tmp_path, monkeypatch, capsys):
    """All of the four videos' people do the same from the first annotated moment to the last."""
    monkeypatch.chdir(tmp_path)
    protocol = "--model.detection.metric.unlabelled_frames=false_positives"
    main(["test", f"--config={config}", *QUIET, SAVE, protocol])
    capsys.readouterr()
    arguments = ["score", f"--config={config}", *QUIET, "--predictions=predictions.csv", "--since_start=true"]
    main([*arguments, protocol])
    said = [line.split() for line in capsys.readouterr().out.splitlines()[-5:]]
    assert said[0][-4:] == ["since", "the", "action's", "start"]
    own = OwnVideos(**yaml.safe_load(config.read_text())["data"]["init_args"]["source"]["init_args"])
    data = tiny.clips(own, tmp_path / "cache")
    seconds = np.concatenate([part[~np.isnan(part)] for part in data.seconds_since_start("test")])
    assert len(seconds) == 81 and 0 < np.sum(seconds < 0.25) < 81
    counts = [int(np.sum(np.digitize(seconds, (0.25, 0.5, 1.0)) == number)) for number in range(4)]
    assert [int(line[1]) for line in said[1:]] == counts
    with pytest.raises(ValueError, match="leave unlabelled_frames and max_rows_per_frame at their defaults"):
        main(arguments)


def test_times_since_the_start_belong_to_their_rows(tmp_path):
    """Three people of a frame, found in another order than the ground truth has them; classes with a hole."""
    boxes = [[0, 0, 50, 50], [100, 0, 150, 50], [150, 0, 200, 50]]
    keyframes = [keyframe(boxes=boxes, labels=[[0, 1, 1], [1, 0, 0], [0, 0, 1]])]
    seconds = [np.asarray([[np.nan, 0.1, 0.3], [0.1, np.nan, np.nan], [np.nan, np.nan, 2.0]])]
    file = written(
        tmp_path / "them.csv",
        "kitchen,902,0.75,0,1,0.5,3,0.9",  # the third person, old
        "kitchen,902,0.5,0,0.75,0.5,3,0.8",  # the second does not do so
        "kitchen,902,0,0,0.25,0.5,3,0.7",  # the first, of the second bin
    )
    result = score_since_start(file, keyframes, seconds, 3, class_ids=(0, 2))
    assert result.counts.tolist() == [[1, 0], [0, 1], [0, 0], [0, 1]]
    assert result.per_class[:, 1].tolist() == pytest.approx([np.nan, 2 / 3, np.nan, 1.0], nan_ok=True)
    assert result.per_class[0, 0] == 0.0


@pytest.mark.slow
def test_two_processes_save_what_one_saves(config, tmp_path):
    command = ["test", f"--config={config}", *QUIET, SAVE]
    alone = main([*command, f"--trainer.default_root_dir={tmp_path / 'one'}"]).trainer.callback_metrics
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", f"--trainer.default_root_dir={tmp_path / 'two'}"]
    (found,) = on_two_processes(tmp_path, [[*command, *two]])
    assert found["world_size"] == 2 and found["test/map"] == pytest.approx(float(alone["test/map"]), abs=1e-6)
    one, both = ((tmp_path / name / "predictions.csv").read_text().splitlines() for name in ("one", "two"))
    assert one != both and sorted(one) == sorted(both)
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["config.yaml", "predictions.csv"]


def test_the_command_line_scores_segments(config, tmp_path, capsys):
    """Two test videos in ActionFormer's form; a detection that is exact, one that overlaps by a half, one elsewhere."""
    spans = {"video_test_0000004": [("Diving", 10, 20)], "video_test_0000006": [("Diving", 0, 8), ("Shotput", 5, 6)]}
    record = {
        name: {
            "subset": "Test",
            "duration": 60.0,
            "fps": 30.0,
            "annotations": [{"label": label, "segment": [start, end], "label_id": 0} for label, start, end in rows],
        }
        for name, rows in spans.items()
    }
    (tmp_path / "thumos14.json").write_text(json.dumps({"database": record}))
    found = {
        "video_test_0000004": [{"label": "Diving", "score": 0.9, "segment": [10, 20]}],
        "video_test_0000006": [{"label": "Diving", "score": 0.8, "segment": [0, 16]}],
        "video_test_0000007": [{"label": "Diving", "score": 0.99, "segment": [0, 16]}],
    }
    (tmp_path / "them.json").write_text(json.dumps({"results": found}))
    source = {"class_path": "datamodules.annotations.thumos14.Thumos14"}
    source |= {"init_args": {"annotations": str(tmp_path / "thumos14.json")}}
    data = {"class_path": "datamodules.segments.SegmentDataModule", "init_args": {"source": source}}
    model = yaml.safe_load(config.read_text())["model"]  # any will do, none is built
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"model": model, "data": data}))
    arguments = [f"--config={tmp_path / 'mine.yaml'}", f"--predictions={tmp_path / 'them.json'}"]
    main(["score", *arguments, *QUIET, "--tiou_thresholds=[0.4, 0.6]"])
    said = capsys.readouterr().out.splitlines()
    # Diving: both segments at 0.4, one of them at 0.6; Shotput: nothing.
    assert said[0].startswith("segment mAP@tIoU 0.4, 0.6") and said[0].endswith(": 37.50 %")
    assert said[1] == "50.00 at 0.4, 25.00 at 0.6"
    assert said[2] == "ground truth: 2 videos, 3 segments; 1 other videos of the file are left out"
    assert ["75.00", "2", "Diving"] in [line.split() for line in said]


def taken(*arguments: str, **given) -> Namespace:
    """Run ``take_protocols`` on a command whose metric has the given keys, and the defaults for the others."""
    of_model = Namespace(vars(FrameMapSettings("pascal", 0.25, "ignore")))
    detection = Namespace(metric=of_model, tiou_thresholds=[0.5, 0.75])
    config = Namespace({"model": Namespace(init_args=Namespace(detection=detection)), "video_protocol": None, **given})
    take_protocols(config, Settings(arguments))
    return config


@pytest.mark.parametrize(
    ("arguments", "own", "expected"),
    [
        (["--metric.iou_threshold=0.75"], {"iou_threshold": 0.75}, ("pascal", 0.75, "ignore")),
        (["--metric.protocol", "ava"], {"protocol": "ava"}, ("ava", 0.25, "ignore")),  # a default, but given
        (["--metric", '{"protocol": "ava"}'], {"protocol": "ava"}, ("ava", 0.25, "ignore")),
        (["--config", '{"metric": {"protocol": "act"}}'], {"protocol": "act"}, ("act", 0.25, "ignore")),
    ],
)
def test_a_key_given_for_the_metric_leaves_the_others_of_the_configs_model(arguments, own, expected):
    metric = taken(*arguments, metric=Namespace(vars(FrameMapSettings(**own)))).metric
    assert (metric.protocol, metric.iou_threshold, metric.unlabelled_frames) == expected


def test_without_a_metric_of_its_own_the_command_has_that_of_the_configs_model():
    assert taken(metric=None).metric.protocol == "pascal"


def test_a_key_given_for_the_metric_in_a_file_counts_as_given(tmp_path):
    (tmp_path / "mine.yaml").write_text("metric:\n  protocol: ava\n")
    metric = taken("--config", str(tmp_path / "mine.yaml"), metric=Namespace(vars(FrameMapSettings()))).metric
    assert (metric.protocol, metric.iou_threshold) == ("ava", 0.25)


def test_overlaps_in_time_are_those_of_the_configs_model_where_the_command_has_them_and_none_is_given():
    assert taken(metric=None, tiou_thresholds=None).tiou_thresholds == [0.5, 0.75]
    assert taken(metric=None, tiou_thresholds=[0.1]).tiou_thresholds == [0.1]
    assert "tiou_thresholds" not in taken(metric=None)  # of ``analyse``


# ---------------------------------------------------------------------------------------------------------------------
# Files of other programs.


def keyframe(video="kitchen", timestamp=902.0, boxes=((0, 0, 50, 50),), labels=((1, 0, 0),), size=(100, 200)):
    boxes, labels = np.asarray(boxes, np.float32).reshape(-1, 4), np.asarray(labels, np.uint8).reshape(-1, 3)
    return TrueKeyframe(video, timestamp, boxes, labels, size)


def written(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


HIT = "kitchen,0902,0,0,0.25,0.5,1,0.9"


def test_a_file_worked_out_by_hand(tmp_path):
    keyframes = [
        keyframe(boxes=[[0, 0, 50, 50], [100, 0, 150, 50]], labels=[[1, 1, 0], [1, 0, 0]]),
        keyframe(timestamp=903.0, labels=[[1, 0, 0]]),
        keyframe(timestamp=904.0, boxes=[], labels=[]),
    ]
    file = written(
        tmp_path / "them.csv",
        "video_name,second,x1,y1,x2,y2,action_id,score",  # a header
        HIT,
        "kitchen,902.004,0.000,0.000,0.250,0.500,2,0.3",  # within the tolerance
        "kitchen,903,0.5,0.5,0.75,1.0,1,0.8",  # elsewhere in the frame
        "kitchen,0904,0.1,0.1,0.2,0.2,1,0.85",  # nobody is there
        "kitchen,0903",  # a frame without detection
        "kitchen,0903,0,0,0.25,0.5,1,0.7",
    )
    score = score_file(file, keyframes, 3)
    # Class 0: hit, miss, miss, hit of three boxes; class 1: one hit of one box; class 2 has no box.
    assert score.result.per_class[:2].tolist() == pytest.approx([(1 + 2 / 4) / 3, 1])
    assert np.isnan(score.result.per_class[2])
    assert (score.result.num_frames, score.result.num_boxes, score.result.num_classes) == (3, 4, 2)
    assert (score.num_detections, score.num_found_frames) == (5, 3)
    only = score_file(file, keyframes, 3, settings=FrameMapSettings(unlabelled_frames="ignore"))
    assert only.result.per_class[0] == pytest.approx((1 + 2 / 3) / 3)
    text = score.text(("walk", "wave", "sit")).splitlines()
    assert text[0] == "ava frame mAP@0.5: 75.00 %"
    assert [line.split() for line in text[-3:]] == [["50.00", "3", "walk"], ["100.00", "1", "wave"], ["-", "0", "sit"]]


def test_rows_and_videos_in_any_order_under_any_name_score_alike(tmp_path):
    generator = np.random.default_rng(0)
    keyframes, lines = [], []
    for video in ("b", "a", "c"):
        for second in range(4):
            corners = generator.integers(0, 50, (2, 2)) * 2.0
            boxes = np.concatenate([corners, corners + 60], axis=1)
            labels = np.eye(3, dtype=np.uint8)[generator.integers(0, 3, 2)]
            keyframes.append(keyframe(video, second, boxes, labels, size=(200, 400)))
            for box in np.concatenate([boxes, boxes, boxes]) + generator.integers(-10, 10, (6, 4)):
                corners = ",".join(f"{side / of:.9g}" for side, of in zip(box, (400, 200) * 2, strict=True))
                # Few different scores: most are tied.
                lines.append(f"{video},{second},{corners},{generator.integers(1, 4)},{generator.integers(1, 4) / 4}")
    maps = {score_file(written(tmp_path / "a.csv", *lines), keyframes, 3).result.mean}
    for _ in range(5):
        lines, keyframes = ([items[i] for i in generator.permutation(len(items))] for items in (lines, keyframes))
        maps.add(score_file(written(tmp_path / "b.csv", *lines), keyframes, 3).result.mean)
    renamed = [item._replace(video_id={"a": "z"}.get(item.video_id, item.video_id)) for item in keyframes]
    other = written(tmp_path / "c.csv", *(line.replace("a,", "z,", 1) for line in lines))
    maps.add(score_file(other, renamed, 3).result.mean)
    assert len(maps) == 1 and 0 < maps.pop() < 1


def test_names_with_commas_and_quotation_marks_come_back(tmp_path):
    name = 'a "film", cut'
    found = ScoredBoxes(torch.tensor([[20.0, 10, 60, 40]]), torch.tensor([[0.25, 1 / 3]]), torch.ones(1))
    for video in (name, "plain"):
        with (tmp_path / "them.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows(found, video, 1.5, (100, 200), (0, 1)))
        read = read_frame_detections(tmp_path / "them.csv")
        assert read.names == (video,) and read.seconds.tolist() == [1.5, 1.5] and read.actions.tolist() == [1, 2]
        assert read.boxes.tolist() == [[0.1, 0.1, 0.3, 0.4]] * 2
        assert read.scores.astype(np.float32).tolist() == found.scores[0].tolist()


def test_what_the_data_do_not_know_is_left_out_counted_and_named(tmp_path):
    file = written(
        tmp_path / "them.csv",
        HIT,
        "garden,902,0,0,0.25,0.5,1,0.95",
        "kitchen,905,0,0,0.25,0.5,1,0.95",
        "kitchen,905,0,0,0.25,0.5,2,0.95",
        "kitchen,902,0,0,0.25,0.5,0,0.95",
    )
    with pytest.warns(UserWarning) as said:
        score = score_file(file, [keyframe()], 3)
    assert score.result.mean == 1 and score.num_detections == 1
    (text,) = (str(warning.message) for warning in said)
    assert text.endswith(
        "4 of 5 detections are left out: 1 videos are not evaluated (garden); 1 moments have no keyframe that is "
        "evaluated (kitchen at 905 s); 1 action ids are not among 1..3 (0)"
    )


def test_classes_that_are_not_scored_are_left_out_without_a_word(tmp_path, recwarn):
    file = written(tmp_path / "them.csv", HIT, "kitchen,902,0,0,0.25,0.5,2,0.95")
    score = score_file(file, [keyframe(labels=[[1, 1, 0]])], 3, class_ids=(0, 2))
    assert score.protocol == "ava frame mAP@0.5, 2 of 3 classes"
    assert (score.result.mean, score.result.num_boxes, score.num_detections) == (1, 1, 1)
    assert not [warning for warning in recwarn if "left out" in str(warning.message)]


def test_a_keyframe_counts_as_annotated_by_an_action_that_is_not_scored_and_not_by_a_person_without_one(tmp_path):
    keyframes = [
        keyframe(labels=[[1, 0, 0]]),
        keyframe(timestamp=903.0, labels=[[0, 1, 0]]),
        keyframe(timestamp=904.0, labels=[[0, 0, 0]]),
    ]
    lines = [HIT.replace("0902", second).replace("0.9", score) for second, score in (("903", "0.95"), ("904", "0.99"))]
    settings = FrameMapSettings(unlabelled_frames="ignore")
    score = score_file(written(tmp_path / "them.csv", HIT, *lines), keyframes, 3, class_ids=(0,), settings=settings)
    assert (score.result.mean, score.result.num_frames) == (0.5, 2)
    metric = FrameMeanAveragePrecision(3, class_ids=[0], unlabelled_frames="ignore")
    box = torch.tensor([[0.0, 0, 50, 50]])
    found = [{"boxes": box, "scores": torch.tensor([s]), "labels": torch.tensor([0])} for s in (0.9, 0.95, 0.99)]
    metric.update(found, [action_rows(box, torch.tensor(frame.labels)) for frame in keyframes])
    assert metric.compute()["map"] == score.result.mean


def test_an_empty_file_scores_zero_and_says_why(tmp_path):
    (tmp_path / "none.csv").touch()
    score = score_file(tmp_path / "none.csv", [keyframe()], 3)
    assert score.result.mean == 0 and "no detection" in score.result.explanation
    assert "no detection" in score.text(("walk", "wave", "sit"))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["garden,902,0,0,1,1,1,0.9"], r"none of its 1 detections .* \(garden\).* kitchen at 902 s.*start_seconds"),
        ([HIT, "kitchen,902,0,0,0.25,0.5,1"], "line 2: 7 columns, expected video,seconds"),
        ([HIT, "kitchen,902,0,0,0.25,high,1,0.9"], "line 2: y2 must be a number, got 'high'"),
        ([HIT, HIT, "kitchen,902,0,0,0.25,0.5,1,nan"], "line 3: score must be a number, got 'nan'"),
        ([HIT, "kitchen,902,0,0,0.25,0.5,1.5,0.9"], "line 2: action_id must be a whole number, got '1.5'"),
        (["kitchen,902,0,0,50,50,1,0.9"], "look like pixels; divide x by the width"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused_with_its_line_and_the_way_out(lines, message, tmp_path):
    with pytest.raises(UserError, match=message):
        score_file(written(tmp_path / "them.csv", *lines), [keyframe()], 3)


@pytest.mark.parametrize("quote", ["", '"'], ids=["plain", "quoted"])
def test_a_box_of_width_and_height_is_refused_with_its_line(quote, tmp_path):
    lines = [HIT, f"{quote}kitchen{quote},902,0.5,0,0.25,0.5,1,0.9"]
    with pytest.raises(UserError, match=r"line 2: the box 0.5,0,0.25,0.5 ends before .* write x1,y1,x2,y2, not width"):
        read_frame_detections(written(tmp_path / "them.csv", *lines))


def test_a_box_without_width_is_no_error(tmp_path):
    found = read_frame_detections(written(tmp_path / "them.csv", "kitchen,902,0.5,0.5,0.5,0.5,1,0.9"))
    assert found.boxes.tolist() == [[0.5] * 4]


@pytest.mark.parametrize("last", ["person_id", "entity_id", " Track_ID"])
def test_annotation_is_refused_as_detections(last, tmp_path):
    """Its people's numbers would be scores, of boxes that are all right."""
    file = written(tmp_path / "boxes.csv", f"video,seconds,x1,y1,x2,y2,action_id,{last}", "kitchen,902,0,0,1,1,1,7")
    with pytest.raises(UserError, match=rf"is annotation, .*{last.strip().lower()}.*; give the file of detections"):
        read_frame_detections(file)


def test_a_header_with_columns_in_another_order_is_refused(tmp_path):
    file = written(tmp_path / "them.csv", "video,seconds,x1,x2,y1,y2,action_id,score", HIT)
    with pytest.raises(UserError, match="column 4 is x2, expected y1; write video,seconds,x1,y1,x2,y2,action_id,score"):
        read_frame_detections(file)


def test_rows_of_a_frame_and_box_share_the_box_whatever_their_order(tmp_path):
    boxes = ("kitchen,902,0,0,0.25,0.5", "kitchen,902,0.5,0,0.75,0.5", "kitchen,903,0,0,0.25,0.5")
    file = written(tmp_path / "them.csv", *(f"{box},{action},0.{action}" for action in (1, 2, 3) for box in boxes))
    preds, *_ = rows_of_file(file, [keyframe(), keyframe(timestamp=903.0)], 3, np.arange(3), 0.01)
    assert len(preds.boxes) == 3 and np.bincount(preds.owners).tolist() == [3, 3, 3]
    of_rows = [(int(preds.frames[owner]), float(preds.boxes[owner, 0])) for owner in preds.owners]
    assert of_rows == [(0, 0), (0, 100), (1, 0)] * 3


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.csv: no such file of detections"):
        score_file(tmp_path / "nothing.csv", [keyframe()], 3)


@pytest.mark.parametrize(
    ("content", "problem"),
    [(HIT.encode("utf-16-le"), ""), (b'"' + b"x" * 200_000, r"line 1: field larger than")],
    ids=["utf-16 without a mark", "one endless field"],
)
def test_a_file_that_is_no_csv_is_refused_with_its_name(content, problem, tmp_path):
    (tmp_path / "them.csv").write_bytes(content)
    with pytest.raises(UserError, match=rf"them\.csv: {problem}"):
        score_file(tmp_path / "them.csv", [keyframe()], 3)


def test_avas_seconds_ids_and_exclusions_are_those_of_its_files(tmp_path):
    """The miniature film has keyframes at 902 and 903, the second excluded; ids have holes."""
    source = Ava(**miniature_ava.arguments(miniature_ava.write_ava(tmp_path)))
    data = tiny.clips(source, None, frame_stride=1)
    (only,) = data.true_keyframes("test")
    assert (only.video_id, only.timestamp, only.original_size) == ("two", 902, (96, 128))
    file = written(
        tmp_path / "them.csv",
        "two,0902,0.125,0.250,0.375,0.750,12,0.9",
        "two,0902,0.125,0.250,0.375,0.750,2,0.99",  # crawling is not scored
        "two,0902,0.500,0.250,0.875,1.000,1,0.8",
        "two,0903,0.500,0.250,0.875,1.000,1,0.99",
    )
    with pytest.warns(UserWarning, match="1 of 4 detections are left out: 1 moments .*two at 903 s"):
        score = score_file(file, [only], data.num_classes, data.evaluated_classes)
    assert score.protocol == "ava frame mAP@0.5, 4 of 80 classes"
    assert (score.result.mean, score.result.num_classes, score.num_detections) == (1, 2, 2)


# ---------------------------------------------------------------------------------------------------------------------
# Writing.


def test_a_run_that_fails_leaves_the_earlier_file_and_nothing_else(source, folder, tmp_path):
    module, data = KINDS["clip"][0](), tiny.clips(source, folder / "cache")
    file = DetectionFile(written(tmp_path / "predictions.csv", HIT))

    class Fails(tiny.L.Callback):
        def on_test_batch_end(self, trainer, *_):
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        tiny.trainer(tmp_path, callbacks=[file, Fails()]).test(module, datamodule=data, verbose=False)
    assert file.path.read_text() == HIT + "\n"
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.csv"]


def test_training_saves_nothing(source, folder, tmp_path):
    module, data = KINDS["clip"][0](), tiny.clips(source, folder / "cache")
    tiny.trainer(tmp_path, max_steps=1, callbacks=[DetectionFile()]).fit(module, datamodule=data)
    assert not list(tmp_path.rglob("*.csv"))


def test_a_module_that_returns_nothing_to_save_is_refused_with_the_way_out(source, folder, tmp_path):
    module, data = KINDS["clip"][0](), tiny.clips(source, folder / "cache")
    module.test_step = lambda batch, batch_idx: None
    with pytest.raises(TypeError, match="take DetectionFile out of"):
        tiny.trainer(tmp_path, callbacks=[DetectionFile()]).test(module, datamodule=data, verbose=False)


def test_at_a_full_disk_the_earlier_file_stays_and_the_new_one_is_named(small_disk):
    (small_disk / "predictions.csv").write_text(HIT + "\n")
    data = SimpleNamespace(num_classes=2, evaluated_classes=None, source=SimpleNamespace(start_seconds=0.0))
    trainer = SimpleNamespace(
        state=SimpleNamespace(fn="test"), log_dir=None, is_global_zero=True, global_rank=0, datamodule=data
    )
    found = ScoredBoxes(torch.rand(400, 4), torch.rand(400, 2), torch.rand(400))
    outputs = {"scored": [found], "video_ids": ["a"], "timestamps": [0.5], "original_sizes": [(96, 128)]}
    file = DetectionFile(small_disk / "predictions.csv")
    file.on_test_start(trainer, None)
    with pytest.raises(UserError, match=r"predictions\.csv: cannot be written: No space left on device") as error:
        for number in range(100):
            file.on_test_batch_end(trainer, None, outputs, None, number)
    file.on_exception(trainer, None, error.value)
    assert {path.name: path.read_text() for path in small_disk.iterdir()} == {"predictions.csv": HIT + "\n"}


@pytest.mark.parametrize("place", ["folder", "file/below.csv", "/proc/self/nothing"])
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_tested(place, source, folder, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    module, data = KINDS["clip"][0](), tiny.clips(source, folder / "cache")
    module.test_step = lambda batch, batch_idx: pytest.fail("this takes hours")
    trainer = tiny.trainer(tmp_path / "run", callbacks=[DetectionFile(tmp_path / place)])
    with pytest.raises(UserError, match=f"{place}: cannot be written: "):
        trainer.test(module, datamodule=data, verbose=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
