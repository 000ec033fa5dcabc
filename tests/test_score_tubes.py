"""Tubes that ``test`` saves are scored again without the model: the same numbers, the linker named."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from callbacks.files.tube_file import TubeFile
from datamodules.batches import TrueTube, TrueTubes
from lightning_modules.commands.score import tube_score_text
from lightning_modules.evaluation.tubes import VideoEvaluation, VideoMapSettings
from lightning_modules.metrics.tube_results import read_tubes, score_tubes, write_tubes
from lightning_modules.metrics.video_map import VideoMeanAveragePrecision
from lightning_modules.networks.detection.outputs import ScoredBoxes
from lightning_modules.stream_detection import StreamDetectionModule, StreamSettings
from main import main
from tests.datamodules.miniature import NumberedVideos
from tests.flat_data import grouped
from tests.lightning_modules import tiny

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")  # where pytest has arguments itself
STRIDE = 3
NAMES = ("walk", "wave")


class FollowedVideos(NumberedVideos):
    """``NumberedVideos`` whose annotation says whose box is whose."""

    def _keyframe(self, frame):
        return super()._keyframe(frame)._replace(tracks=np.array([4, 9]))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return FollowedVideos(folder, lengths=(40, 24, 33, 9, 26, 14), training=2, sizes=((96, 128), (128, 96)))


def streaming(linker="online", protocol="act"):
    network = tiny.student()
    tiny.place_proposals(network)
    settings = VideoMapSettings(linker, protocol, min_score=0.0, score_threshold=0.0, nms_threshold=0.5)
    return StreamDetectionModule(network, detection=StreamSettings(video_map=settings))


@pytest.mark.slow
@pytest.mark.parametrize(("linker", "protocol"), [("online", "act"), ("act", "multisports")])
@pytest.mark.parametrize("action", ["test", "validate"])
def test_what_is_saved_scores_as_it_did(linker, protocol, action, source, tmp_path):
    module, data = streaming(linker, protocol), tiny.streams(source, tmp_path / "cache", frame_stride=STRIDE)
    file = TubeFile(tmp_path / "new" / "tubes.json")
    (scores,) = getattr(tiny.trainer(tmp_path, callbacks=[file]), action)(module, datamodule=data, verbose=False)
    found = read_tubes(file.path, NAMES)
    assert (found.frame_stride, found.linker, len(found.videos)) == (STRIDE, linker, 4)
    # A module that has been nowhere yet: the ground truth needs neither setup nor cache.
    fresh = tiny.streams(source, tmp_path / "none", frame_stride=STRIDE)
    truth = {video: [tube._asdict() for tube in tubes.tubes] for video, tubes in fresh.true_tubes("test").items()}
    again = score_tubes(found.videos, truth, VideoMeanAveragePrecision(2, protocol=protocol))
    prefix = "test" if action == "test" else "val"
    for name in ("map_20", "map_50", "map_75", "map_50_95"):
        assert float(again[name]) == pytest.approx(scores[f"{prefix}/video_{name}"], abs=1e-6)  # logged in float32
    assert 0 < again["map_20"] < 1 and not (tmp_path / "none").exists()


def test_a_file_of_our_own_lacks_no_video_without_tubes_and_every_video_that_was_cut_short(tmp_path):
    truth = {name: TrueTubes(3, {}, (TrueTube(0, np.arange(3), SQUARE[:3]),)) for name in ("found", "empty", "cut")}
    evaluation = VideoEvaluation(VideoMapSettings(), VideoMeanAveragePrecision(2), truth, STRIDE)
    trainer = SimpleNamespace(state=SimpleNamespace(fn="test"), log_dir=None, world_size=1, is_global_zero=True)
    trainer.datamodule, trainer.ckpt_path = SimpleNamespace(class_names=NAMES), None
    module, file = SimpleNamespace(evaluator=SimpleNamespace(videos=evaluation)), TubeFile(tmp_path / "tubes.json")
    nobody = ScoredBoxes(torch.zeros(0, 4), torch.zeros(0, 2), torch.zeros(0))
    somebody = ScoredBoxes(torch.tensor([[0.0, 0, 50, 50]]), torch.tensor([[0.9, 0]]), torch.ones(1))
    file.on_test_start(trainer, module)
    for video, frame, count in (("found", somebody, 3), ("empty", nobody, 3), ("cut", somebody, 2)):
        evaluation.add([(video, slot) for slot in range(count)], [frame] * count)
    file.on_test_end(trainer, module)
    assert {video: len(tubes) for video, tubes in read_tubes(file.path, NAMES).videos.items()} == {
        "found": 1,
        "empty": 0,
    }
    with pytest.warns(UserWarning) as said:
        tube_score_text(file.path, truth, NAMES, STRIDE)
    assert [str(warning.message) for warning in said] == [
        f"{file.path}: 1 of 3 videos of the ground truth are not in the file and count as missed: cut"
    ]


def test_without_a_video_map_there_is_nothing_to_save(source, tmp_path):
    module, data = StreamDetectionModule(tiny.student()), tiny.streams(source, tmp_path / "cache", frame_stride=STRIDE)
    with pytest.raises(ValueError, match=r"set model\.detection\.video_map\.linker=online"):
        tiny.trainer(tmp_path, callbacks=[TubeFile()]).test(module, datamodule=data, verbose=False)


def test_training_saves_nothing(source, tmp_path):
    trainer = tiny.trainer(tmp_path, max_epochs=1, limit_train_batches=1, callbacks=[TubeFile(tmp_path / "tubes.json")])
    trainer.fit(streaming(), datamodule=tiny.streams(source, tmp_path / "cache", frame_stride=STRIDE))
    assert "val/video_map_50" in trainer.callback_metrics and not (tmp_path / "tubes.json").exists()


SQUARE = np.tile([0.0, 0, 50, 50], (4, 1))
FAR = SQUARE + 100


def test_a_file_worked_out_by_hand(tmp_path):
    truth = {"kitchen": TrueTubes(4, {}, (TrueTube(0, np.arange(4), SQUARE), TrueTube(1, np.arange(4), FAR)))}
    found = [
        {"label": 0, "score": 0.9, "frames": np.arange(4), "boxes": FAR},
        {"label": 0, "score": 0.8, "frames": np.arange(2), "boxes": SQUARE[:2]},  # half of its time
        {"label": 1, "score": 0.7, "frames": np.arange(4), "boxes": FAR},
    ]
    write_tubes(tmp_path / "tubes.json", {"kitchen": found, "elsewhere": []}, NAMES, 2, "online")
    said = tube_score_text(tmp_path / "tubes.json", truth, NAMES, 2, "multisports").splitlines()
    assert said[0] == "multisports video mAP, online linker, stride 2"
    # ``multisports`` counts a tube's last frame less its first: 1 of 3, a hit at 0.2 behind a miss.
    assert said[1] == "75.00 % at 0.2, 50.00 % at 0.5, 50.00 % at 0.75, 50.00 % at 0.5:0.95"
    counts = "1 videos, 2 tubes, 2 classes; detections: 3 tubes; 1 other videos of the file are left out"
    assert said[2] == f"ground truth: {counts}"
    assert [line.split() for line in said[-2:]] == [["0.00", "1", "walk"], ["100.00", "1", "wave"]]
    with pytest.raises(ValueError, match="one frame in 2, the ground truth of one in 4; set data"):
        tube_score_text(tmp_path / "tubes.json", truth, NAMES, 4)


@pytest.mark.slow
def test_the_command_line_scores_tubes_under_the_configs_protocol(tmp_path, capsys):
    """Four frames of one of two videos, found exactly."""
    tiny.videos(tmp_path).prepare()
    rows = [f"{video},{frame / 8},0.125,0.25,0.375,0.75,1,7" for video in ("video_0", "video_1") for frame in range(4)]
    (tmp_path / "boxes.csv").write_text("\n".join(rows))
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    own = {"videos": tmp_path, "annotations": tmp_path / "boxes.csv", "classes": tmp_path / "classes.txt"}
    own = {name: str(path) for name, path in own.items()} | {"train": ["video_1"], "val": ["video_0"]}
    source = {"class_path": "datamodules.annotations.own_videos.OwnVideos", "init_args": own}
    settings = {"source": source, "frame_stride": 1, "short_side": 64, "cache": str(tmp_path / "cache")}
    network = str(Path(__file__).parents[1] / "configs" / "networks" / "tsa_tiny.yaml")
    experiment = {
        "model": {
            "class_path": "lightning_modules.stream_detection.StreamDetectionModule",
            "init_args": {"network": network, "detection": {"video_map": {"linker": "act", "protocol": "multisports"}}},
        },
        "data": {"class_path": "datamodules.stream.StreamDataModule", "init_args": grouped(settings)},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(experiment))
    tube = {"label": "walk", "score": 0.5, "start_frame": 0, "boxes": [[16, 24, 48, 72]] * 4}
    (tmp_path / "tubes.json").write_text(json.dumps({"tubes": {"video_0": [tube]}, "linker": "mine"}))
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.logger=false", "--trainer.callbacks=[]"]
    command = ["score", f"--config={tmp_path / 'mine.yaml'}", f"--predictions={tmp_path / 'tubes.json'}", *quiet]
    main(command)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "multisports video mAP, mine linker, stride 1"
    assert said[1].startswith("100.00 % at 0.2, 100.00 % at 0.5")
    main([*command, "--video_protocol=act", "--verbose=false"])
    assert capsys.readouterr().out.startswith("act video mAP, mine linker, stride 1")
    assert not (tmp_path / "cache").exists()
