"""Training and evaluating a clip detector, and what every detection experiment checks before it runs."""

from itertools import pairwise

import pytest
import torch

from callbacks.benchmark.callback import BenchmarkTable
from callbacks.benchmark.rows import read_rows
from datamodules.errors import UserError
from datamodules.sampling.samplers import STAND_IN, Request
from lightning_modules.base import TrainingSettings
from lightning_modules.clip_detection import ClipDetectionModule
from lightning_modules.evaluation.detection_evaluator import DetectionEvaluator
from lightning_modules.networks.detection.published_cost import published_gflops
from lightning_modules.networks.weights.loading import read_state_dict, save_weights
from tests.lightning_modules import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="module")
def data(folder):
    data = tiny.clips(tiny.videos(folder), folder / "cache")
    data.prepare_data()
    data.setup("fit")
    return data


def optimizer(groups):
    return torch.optim.AdamW(groups, lr=3e-3)


@pytest.mark.slow
def test_the_loss_of_a_repeated_batch_falls(data, tmp_path):
    batch, losses = next(iter(data.train_dataloader())), tiny.Losses()
    module = ClipDetectionModule(tiny.teacher(), optimizer=optimizer)
    tiny.trainer(tmp_path, max_epochs=1, callbacks=[losses]).fit(module, datamodule=tiny.Repeated(batch, steps=30))
    assert losses.values[-1] < 0.4 * losses.values[0]


@pytest.mark.slow
@pytest.mark.parametrize("keyframe", ["middle", "last"])
def test_whole_clips_follow_the_time_of_the_keyframe_slot_alone(folder, tmp_path, keyframe):
    data = tiny.clips(tiny.videos(folder / "videos"), folder / "cache", past_frames={"middle": 3, "last": 4}[keyframe])
    data.prepare_data()
    data.setup("fit")
    batch, shown = next(iter(data.train_dataloader())), []
    module = ClipDetectionModule(tiny.teacher(keyframe=keyframe), one_slot_until=0.5)
    whole = module.network.outputs

    def remember(clips, *args, **kwargs):
        shown.append(clips)
        return whole(clips, *args, **kwargs)

    module.network.outputs = remember
    tiny.trainer(tmp_path, max_epochs=1).fit(module, datamodule=tiny.Repeated(batch, steps=6))
    assert [clips.shape[2] for clips in shown] == [2, 2, 2, 4, 4, 4]
    # The keyframe, frame 2 of 4, and the one after it; or the one before it and the keyframe.
    torch.testing.assert_close(shown[0], shown[-1][:, :, 2:4], rtol=0, atol=0)


def test_a_clip_that_the_network_cannot_embed_is_refused_with_the_way_out(folder, tmp_path):
    data = tiny.clips(tiny.videos(folder / "videos"), folder / "cache", num_frames=3)
    module = ClipDetectionModule(tiny.teacher())
    with pytest.raises(UserError, match=r"data\.num_frames: .*a clip of 3 does not fit; take a multiple of 2"):
        tiny.trainer(tmp_path).validate(module, data)


@pytest.mark.parametrize(("keyframe", "past_frames"), [("last", None), ("last", 3), ("middle", 4)])
def test_data_with_the_keyframe_elsewhere_are_refused_with_the_way_out(folder, tmp_path, keyframe, past_frames):
    data = tiny.clips(tiny.videos(folder / "videos"), folder / "cache", past_frames=past_frames)
    module = ClipDetectionModule(tiny.teacher(keyframe=keyframe))
    wanted = {"last": 4, "middle": 3}[keyframe]
    with pytest.raises(UserError, match=f"data.init_args.past_frames: .*; set it to {wanted}"):
        tiny.trainer(tmp_path).test(module, datamodule=data, verbose=False)
    right = tiny.clips(data.source, folder / "cache", past_frames=wanted)
    tiny.trainer(tmp_path).test(module, datamodule=right, verbose=False)


def test_every_loss_is_logged_beside_their_mean(data, tmp_path):
    batch = next(iter(data.train_dataloader()))
    trainer = tiny.trainer(tmp_path, max_epochs=1)
    trainer.fit(ClipDetectionModule(tiny.teacher()), datamodule=tiny.Repeated(batch, steps=1))
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    terms = ["train/loss/person", "train/loss/l1", "train/loss/giou", "train/loss/action"]
    assert set(logged) == {"train/loss", *terms}
    assert logged["train/loss"] == pytest.approx(sum(2 * logged[term] for term in terms) / 8, rel=1e-5)  # 2 of each


def test_evaluation_scores_every_keyframe_once_and_names_the_classes(data, tmp_path):
    network, results = tiny.teacher(), tiny.Results()
    tiny.place_proposals(network)
    trainer = tiny.trainer(tmp_path, callbacks=[results])
    (scores,) = trainer.test(ClipDetectionModule(network), datamodule=data, verbose=False)
    lengths, every = data.source.lengths[2:], data.source.every
    assert int(results.result["num_frames"]) == sum(len(range(1, length, every)) for length in lengths)
    assert set(scores) == {"test/map", "test/ap/walk", "test/ap/wave"}
    assert 0 < scores["test/map"] < 1
    assert scores["test/map"] == pytest.approx((scores["test/ap/walk"] + scores["test/ap/wave"]) / 2, rel=1e-5)


def test_classes_that_the_data_do_not_score_count_neither_for_nor_against(data, tmp_path, monkeypatch):
    network = tiny.teacher()
    tiny.place_proposals(network)
    module, results = ClipDetectionModule(network), tiny.Results()
    (everything,) = tiny.trainer(tmp_path).test(module, datamodule=data, verbose=False)
    monkeypatch.setattr(data.source, "evaluated_classes", lambda: (1,))
    (scored,) = tiny.trainer(tmp_path, callbacks=[results]).test(module, datamodule=data, verbose=False)
    assert set(scored) == {"test/map", "test/ap/wave"}
    assert scored["test/map"] == scored["test/ap/wave"] == pytest.approx(everything["test/ap/wave"])
    assert module.protocol == "ava frame mAP@0.5, 1 of 2 classes, stride 2"
    assert int(results.result["num_boxes"]) == int(results.result["num_frames"])  # one of two persons waves


def test_accuracy_does_not_depend_on_the_batch_size(data, folder, tmp_path):
    network = tiny.teacher()
    tiny.place_proposals(network)
    module, maps = ClipDetectionModule(network), []
    for size in (1, 7):
        data = tiny.clips(data.source, folder / "cache", eval_batch_size=size)
        maps.append(tiny.trainer(tmp_path).test(module, datamodule=data, verbose=False)[0]["test/map"])
    assert maps[0] == pytest.approx(maps[1], abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("num_frames", [4, 2])
def test_the_published_arithmetic_is_that_of_the_measured_clip(folder, tmp_path, num_frames):
    data, network = tiny.clips(tiny.videos(folder), folder / "cache", num_frames=num_frames), tiny.teacher()
    table = BenchmarkTable(folder=tmp_path / "results", warmup=0, repeats=1)
    module = ClipDetectionModule(network)
    tiny.trainer(tmp_path, callbacks=[table]).test(module, datamodule=data, verbose=False)
    (row,) = read_rows(tmp_path / "results" / "benchmark.jsonl")
    assert row.frame == "64 x 96"  # the first videos are 64 x 85 pixels, padded
    assert row.gflops_published == published_gflops(network, 64, 96, num_frames).total
    assert 0 < row.gflops < row.gflops_published


def test_predictions_are_one_entry_a_sampled_frame(data, tmp_path):
    (*batches,) = tiny.trainer(tmp_path).predict(ClipDetectionModule(tiny.teacher()), datamodule=data)
    frames = [frame for batch in batches for frame in batch]
    for number, length in list(enumerate(data.source.lengths))[2:]:
        times = [frame.seconds for frame in frames if frame.video_id == f"video_{number}"]
        # An annotated frame carries the time of its annotation, which is at most one frame after it.
        assert times == pytest.approx([frame / 8 for frame in range(0, length, 2)], abs=0.13)
        assert all(earlier < later for earlier, later in pairwise(times))
    assert len(frames[0].people) == 4 and {person.track for person in frames[0].people} == {None}
    assert all(tuple(person.actions) == data.class_names for person in frames[0].people)


def test_boxes_are_scored_in_pixels_of_the_original_video(data):
    network = tiny.teacher()
    tiny.place_proposals(network)
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    module = ClipDetectionModule(network).eval()
    with torch.no_grad():
        scored = module.detect(batch)
    height, width = batch.original_sizes[0].tolist()
    assert (height, width) in ((96, 128), (128, 96))
    expected = torch.tensor([[0.125, 0.25, 0.375, 0.75], [0.5, 0.25, 0.875, 1.0]])
    found = scored[0].boxes[:2] / torch.tensor([width, height, width, height])
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)  # the last row and column of a frame is its size - 1


@pytest.mark.slow
@pytest.mark.parametrize("action", ["fit", "test"])
def test_other_classes_than_the_datas_are_refused_with_the_way_out(data, tmp_path, action):
    module = ClipDetectionModule(tiny.teacher(num_classes=7))
    message = "network has 7 classes but the data has 2; build it with num_classes=2"
    with pytest.raises(ValueError, match=message):
        getattr(tiny.trainer(tmp_path, max_steps=1), action)(module, datamodule=data)


def test_weights_start_the_network_and_fresh_ones_do_not(tmp_path):
    save_weights(tiny.teacher(seed=5).state_dict(), tmp_path / "weights.pt")
    stored = read_state_dict(tmp_path / "weights.pt")
    module = ClipDetectionModule(tiny.teacher(), weights=str(tmp_path / "weights.pt"))
    for name, value in module.network.state_dict().items():
        torch.testing.assert_close(value, stored[name], rtol=0, atol=0)

    # Other classes than the weights know: the action heads start over.
    other = tiny.teacher(num_classes=3)
    with pytest.raises(UserError, match=r"weights.pt: .* know 2 classes, but the data has 3; start .*action_logits"):
        ClipDetectionModule(other, str(tmp_path / "weights.pt"))
    start = other.head.decoder.blocks[0].action_logits.weight.clone()
    training = TrainingSettings(fresh=["head.decoder.blocks.*.action_logits.*"])
    ClipDetectionModule(other, str(tmp_path / "weights.pt"), training=training)
    torch.testing.assert_close(other.head.decoder.blocks[0].action_logits.weight, start, rtol=0, atol=0)
    torch.testing.assert_close(other.backbone.norm.weight, stored["backbone.norm.weight"], rtol=0, atol=0)


def test_fresh_parameters_without_weights_are_refused():
    with pytest.raises(ValueError, match=r"set model\.weights too"):
        ClipDetectionModule(tiny.teacher(), training=TrainingSettings(fresh=["head.decoder.*"]))


def test_a_checkpoint_gives_back_the_same_accuracy(data, tmp_path):
    network = tiny.teacher(seed=3)
    tiny.place_proposals(network)
    module, trainer = ClipDetectionModule(network, optimizer=optimizer), tiny.trainer(tmp_path, max_steps=1)
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    (before,) = tiny.trainer(tmp_path).test(module, datamodule=data, verbose=False)
    fresh = ClipDetectionModule(tiny.teacher())
    (after,) = tiny.trainer(tmp_path).test(fresh, datamodule=data, ckpt_path=tmp_path / "last.ckpt", verbose=False)
    assert after == before


def detections_of(module, batches) -> dict[tuple[str, float], tuple[torch.Tensor, torch.Tensor]]:
    """Boxes and scores of each keyframe."""
    with torch.no_grad():
        return {
            (video, time): (found.boxes, found.scores)
            for batch in batches
            for video, time, found in zip(
                batch.video_ids, batch.timestamps[:, 0].tolist(), module.detect(batch), strict=True
            )
        }


def test_detections_do_not_depend_on_what_shares_their_batch(data, folder):
    module = ClipDetectionModule(tiny.teacher()).eval()
    alone, together = (
        tiny.clips(data.source, folder / "cache", eval_batch_size=size, keyframe_grid=4) for size in (1, 4)
    )
    for one in (alone, together):
        one.setup("validate")
    single = detections_of(module, alone.val_dataloader())
    batched = detections_of(module, together.val_dataloader())
    assert single.keys() == batched.keys() and len(single) > 16
    for keyframe, found in single.items():
        torch.testing.assert_close(batched[keyframe], found, rtol=1e-4, atol=1e-4)
    # Detectors do see padding: videos of two shapes in one batch would be detected differently.
    dataset = together.val_dataloader().dataset
    last = [int((dataset.samples[:, 0] == video).argmax()) for video in range(2)]
    mixed = detections_of(module, [dataset[[Request(index, None) for index in last]]])
    assert max(float((mixed[k][1] - single[k][1]).abs().max()) for k in mixed) > 1e-3


def test_clips_that_stand_in_count_neither_in_the_score_nor_in_predictions(data, folder):
    module = ClipDetectionModule(tiny.teacher()).eval()
    evaluated = tiny.clips(data.source, folder / "cache", eval_batch_size=3)
    evaluated.setup("validate")
    module.evaluator = DetectionEvaluator(module.detection, module.network.num_classes)
    dataset = evaluated.val_dataloader().dataset
    with torch.no_grad():
        whole = module.validation_step(dataset[[Request(0, None), Request(1, None)]], 0)
        one = module.validation_step(dataset[[Request(STAND_IN, None), Request(1, None)]], 1)
        none = module.validation_step(dataset[[Request(STAND_IN, None)]], 2)
        assert module.predict_step(dataset[[Request(STAND_IN, None)]], 0) == []
    assert int(module.evaluator.metric.compute()["num_frames"]) == 3
    assert [len(step["scored"]) for step in (whole, one, none)] == [2, 1, 0]
    assert one["video_ids"] == whole["video_ids"][1:] and one["timestamps"] == whole["timestamps"][1:]
    torch.testing.assert_close(one["scored"][0].scores, whole["scored"][1].scores, rtol=1e-4, atol=1e-4)
    assert [len(step["frames"]) for step in (whole, one, none)] == [2, 1, 0]
