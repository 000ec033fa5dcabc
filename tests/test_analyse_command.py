"""``main.py analyse`` on detections made of the ground truth, so that what is wrong is known."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml

from lightning_modules.commands.analyse import analyse, names_of
from lightning_modules.metrics.tube_results import write_tubes
from lightning_modules.networks.weights.configured import network_config
from main import main
from tests.datamodules.miniature import NumberedVideos
from tests.flat_data import grouped
from tests.lightning_modules import tiny

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.logger=false", "--trainer.accelerator=cpu")
QUIET += ("--trainer.enable_model_summary=false", "--trainer.callbacks=[]")


class Truth:
    """Written videos with a csv of boxes, as somebody's own."""

    def __init__(self, folder: Path, *, persons: bool = True) -> None:
        source = tiny.videos(folder)
        source.prepare()
        self.folder = folder
        (folder / "classes.txt").write_text("walk\nwave\n")
        self.moments = []
        with (folder / "boxes.csv").open("w", newline="") as file:
            for split in ("train", "val"):
                for video in source.videos(split):
                    for moment in video.keyframes:
                        for person, (box, labels) in enumerate(zip(moment.boxes, moment.labels, strict=True)):
                            for action in np.flatnonzero(labels):
                                row = [video.video_id, moment.timestamp + 10, *box.tolist(), action + 1]
                                csv.writer(file).writerow([*row, person] if persons else row)
                        if split == "val":
                            self.moments.append((video.video_id, moment.timestamp + 10, moment.boxes, moment.labels))
        shapes = network_config(Path(__file__).parents[1] / "configs" / "networks" / "evad_tiny.yaml", 10)
        own = {"videos": folder, "annotations": folder / "boxes.csv", "classes": folder / "classes.txt"}
        own = {name: str(path) for name, path in own.items()} | {"train": ["video_0", "video_1"], "start_seconds": 10}
        data = {"source": {"class_path": "datamodules.annotations.own_videos.OwnVideos", "init_args": own}}
        data |= {"num_frames": 4, "frame_stride": 2, "batch_size": 4, "short_side": 64}
        model = {"network": shapes, "detection": {"metric": {"protocol": "pascal"}}}
        experiment = {
            "model": {
                "class_path": "lightning_modules.clip_detection.ClipDetectionModule",
                "init_args": model,
            },
            "data": {"class_path": "datamodules.clip.ClipDataModule", "init_args": grouped(data)},
        }
        (folder / "mine.yaml").write_text(yaml.safe_dump(experiment))
        self.config = folder / "mine.yaml"

    def write(self, path: Path, *, wrong_every: int = 0) -> Path:
        """Detections: every true row at 0.5 to 0.9, and of each n-th box the other action too at 0.95."""
        with path.open("w", newline="") as file:
            count = 0
            for video, seconds, boxes, labels in self.moments:
                for box, does in zip(boxes, labels, strict=True):
                    count += 1
                    for action in range(2):
                        if does[action]:
                            score = 0.5 + 0.4 * (count % 7) / 7
                        elif wrong_every and count % wrong_every == 0:
                            score = 0.95
                        else:
                            continue
                        csv.writer(file).writerow([video, seconds, *box.tolist(), action + 1, score])
        return path


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    return Truth(tmp_path_factory.mktemp("analyse"))


class Links(HTMLParser):
    """Addresses that a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.found += [value for name, value in attrs if name in ("src", "href")]


@pytest.mark.slow
def test_the_page_says_what_is_wrong(truth, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    predictions = truth.write(tmp_path / "wrong.csv", wrong_every=3)
    main(["analyse", f"--config={truth.config}", *QUIET, f"--predictions={predictions}", "--num_pictures=3"])
    said = capsys.readouterr().out
    assert said.startswith("wrong: pascal frame mAP@0.5: ")
    counts = {line.split()[0]: line.split() for line in said.splitlines() if "+" in line}
    _, _, cost, count, _ = counts["wrong"]
    assert float(cost) > 5 and int(count) > 3
    assert all(line[1 if name != "missed" else 2] == "+0.00" for name, line in counts.items() if name != "wrong")
    mean = float(re.search(r": ([\d.]+) %", said)[1])
    assert mean + float(cost) == pytest.approx(100, abs=0.02)  # nothing else is wrong

    page = Links()
    text = Path("runs/analysis.html").read_text()
    page.feed(text)
    assert page.found and all(link.startswith("data:image/png;base64,") for link in page.found)
    assert "http" not in text and not {"script", "link", "iframe"} & set(page.tags)
    markdown = Path("runs/analysis.md").read_text()
    pictures = re.findall(r"\]\((\S+\.png)\)", markdown)
    assert sum("error_" in name for name in pictures) == 3
    assert sorted(pictures) == sorted(path.name for path in Path("runs").glob("*.png"))
    for heading in ("Kinds of error", "Confusion", "Precision and recall", "Scores", "AP by property"):
        assert f"## {heading}" in markdown
    times = ("time since the action's start", "time until the action's end", "share of the action seen")
    for name in (*times, "duration of the action", "speed"):
        assert name in markdown


@pytest.mark.slow
def test_two_files_stand_side_by_side(truth, tmp_path, capsys):
    files = [truth.write(tmp_path / "right.csv"), truth.write(tmp_path / "wrong.csv", wrong_every=3)]
    arguments = [f"--predictions={files[0]}", f"--against={files[1]}", f"--output={tmp_path / 'both'}"]
    main(["analyse", f"--config={truth.config}", *QUIET, *arguments, "--num_pictures=1"])
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("right: ") and said[0].endswith(": 100.00 %") and said[1].startswith("wrong: ")
    markdown = (tmp_path / "both.md").read_text()
    assert "right: mAP" in markdown and "wrong: mAP" in markdown
    assert "Costliest errors of wrong" in markdown and "Costliest errors of right" not in markdown


@pytest.mark.slow
def test_boxes_of_nobody_in_particular_have_no_times(tmp_path):
    truth = Truth(tmp_path, persons=False)
    predictions = truth.write(tmp_path / "them.csv", wrong_every=3)
    main(["analyse", f"--config={truth.config}", *QUIET, f"--predictions={predictions}", f"--output={tmp_path / 'p'}"])
    markdown = (tmp_path / "p.md").read_text()
    assert "people in the frame" in markdown and "action's start" not in markdown


class FollowedVideos(NumberedVideos):
    """``NumberedVideos`` whose annotation says whose box is whose."""

    def _keyframe(self, frame):
        return super()._keyframe(frame)._replace(tracks=np.array([4, 9]))


@pytest.mark.parametrize("run", ["version_0", "latest"])
def test_files_of_two_runs_are_called_by_the_names_of_the_runs(run, tmp_path, monkeypatch):
    """By default each lies in runs/<name>/version_0, and "latest" is a link to that."""
    monkeypatch.chdir(tmp_path)
    files = [Path("runs", name, run, "predictions.csv") for name in ("distill_tsa", "distill_dsta")]
    for file in files:
        (file.parents[1] / "version_0").mkdir(parents=True)
        if run == "latest":
            file.parent.symlink_to("version_0")
    assert names_of(files) == [f"distill_tsa/{run}/predictions", f"distill_dsta/{run}/predictions"]


def test_files_are_called_by_as_little_as_tells_them_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert names_of([Path("runs/tsa.csv"), Path("other/dsta.csv")]) == ["tsa", "dsta"]
    assert names_of([Path("tsa.csv"), Path("../tsa.csv")]) == [f"{tmp_path.name}/tsa", f"{tmp_path.parent.name}/tsa"]
    assert names_of([Path("tsa.csv"), Path("tsa.json")]) == ["tsa.csv", "tsa.json"]


def test_pictures_of_a_tube_that_leaves_the_annotated_part_show_its_own_frames(tmp_path, monkeypatch):
    """Frames 1 to 13 of 40 are annotated; the tube goes on, and two of its sampled frames come after the end."""
    source = FollowedVideos(tmp_path, lengths=(9, 40), training=1)
    source.prepare()
    videos = [video._replace(keyframes=video.keyframes[:5]) for video in source.videos("test")]
    monkeypatch.setattr(source, "videos", lambda split: videos)
    monkeypatch.setattr(source, "start_seconds", 10.0)
    data, shown = tiny.streams(source, tmp_path / "cache", frame_stride=3), []
    monkeypatch.setattr(data, "frame_reader", lambda split: lambda video, seconds: shown.append(seconds))
    tube = {"label": 1, "score": 0.9, "frames": np.arange(16), "boxes": np.tile([64.0, 24, 112, 96], (16, 1))}
    write_tubes(tmp_path / "tubes.json", {"video_1": [tube]}, data.class_names, 3, "online")
    analyse(None, None, data, tmp_path / "tubes.json", num_pictures=1, output=tmp_path / "page")
    assert shown == pytest.approx([10.0, 10 + 7 * 3 / 8, 10 + 15 * 3 / 8])


@pytest.mark.slow
def test_tubes(tmp_path, capsys):
    """Every true tube of three frames or more, cut off after its first third."""
    source = FollowedVideos(tmp_path, lengths=(40, 24, 33, 26), training=2, sizes=((96, 128), (128, 96)))
    data = tiny.streams(source, tmp_path / "cache", frame_stride=3)
    true = data.true_tubes("test")
    found = {
        video: [tube._asdict() | {"score": 0.9, "boxes": tube.boxes[: len(tube.boxes) // 3]} for tube in of.tubes]
        for video, of in true.items()
    }
    write_tubes(tmp_path / "tubes.json", found, data.class_names, 3, "none")
    analyse(None, None, data, tmp_path / "tubes.json", output=tmp_path / "page")
    said = capsys.readouterr().out
    assert "act video mAP@0.5, none linker: 0.00 %" in said
    lines = {" ".join(line.split()[:-3]): line.split()[-3:] for line in said.splitlines() if "+" in line}
    assert lines["frames lost"] == ["+100.00", *[str(sum(map(len, found.values())))] * 2]
    assert "frames lost: w" in (tmp_path / "page.md").read_text()
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_segments(truth, tmp_path, capsys):
    """Of two videos, one is found, of the other one class is wrong and a segment in nowhere comes first."""
    spans = {"video_test_0000004": [("Diving", 10, 20)], "video_test_0000006": [("Diving", 0, 8), ("Shotput", 15, 16)]}
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
        "video_test_0000004": [
            {"label": "Diving", "score": 0.95, "segment": [40, 50]},
            {"label": "Diving", "score": 0.9, "segment": [10, 20]},
        ],
        "video_test_0000006": [
            {"label": "Diving", "score": 0.8, "segment": [0, 8]},
            {"label": "Diving", "score": 0.7, "segment": [15, 16]},
        ],
    }
    (tmp_path / "them.json").write_text(json.dumps({"results": found}))
    source = {"class_path": "datamodules.annotations.thumos14.Thumos14"}
    source |= {"init_args": {"annotations": str(tmp_path / "thumos14.json")}}
    data = {"class_path": "datamodules.segments.SegmentDataModule", "init_args": {"source": source}}
    model = yaml.safe_load(truth.config.read_text())["model"]  # any will do, none is built
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"model": model, "data": data}))
    arguments = [f"--config={tmp_path / 'mine.yaml'}", f"--predictions={tmp_path / 'them.json'}"]
    main(["analyse", *arguments, *QUIET, f"--output={tmp_path / 'segments'}"])
    said = capsys.readouterr().out
    # Diving: miss, hit, hit, miss: AP 2/3. Shotput: 0, or 1 once the wrong action is repaired.
    assert "segment mAP@tIoU 0.5" in said and ": 33.33 %" in said
    lines = {" ".join(line.split()[:-3]): line.split()[-3:] for line in said.splitlines() if "+" in line}
    assert lines["wrong action"] == ["+50.00", "1", "0"]
    assert lines["background"] == ["+16.67", "1", "1"]
    page = (tmp_path / "segments.md").read_text()
    assert "Costliest errors" in page and "missed segment: nothing overlaps it enough" in page
    assert not any(word in page for word in ("person", "people", "somebody", "nobody"))
