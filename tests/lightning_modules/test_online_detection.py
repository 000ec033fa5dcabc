"""Per-frame scores of streams: trained on windows, evaluated on whole videos with one state each."""

from __future__ import annotations

import pytest
import torch

from callbacks.measures.flops import count_gflops
from datamodules.batches import SegmentBatch
from datamodules.segments import SegmentDataModule
from lightning_modules.metrics.per_frame_map import PerFrameMeanAveragePrecision, frame_targets
from lightning_modules.networks.temporal.backbones.recurrent_features import RecurrentFeatures
from lightning_modules.networks.temporal.backbones.trunk_features import TrunkFeatures
from lightning_modules.networks.temporal.frame_scores import FrameScores
from lightning_modules.online_detection import OnlineDetectionModule, frame_loss
from tests.lightning_modules.temporal import CHANNELS, features
from tests.lightning_modules.tiny import trainer
from tests.networks.tiny import trunk_of

SIZES = {"dim": 8, "depth": 1, "num_heads": 2, "num_frames": 2, "pretrain_size": 32, "pyramid_layers": ()}


def module(**changes) -> OnlineDetectionModule:
    torch.manual_seed(0)
    return OnlineDetectionModule(FrameScores(RecurrentFeatures(CHANNELS, 16), 3), modality="features", **changes)


def opened(folder, stage: str = "fit", **changes) -> SegmentDataModule:
    data = features(folder, **changes)
    data.prepare_data()
    data.setup(stage)
    return data


def whole_videos(network: FrameScores, folder) -> dict[str, tuple[torch.Tensor, SegmentBatch]]:
    """Scores of every validation video passed in one chunk, and its batch."""
    data = opened(folder, eval_window_steps=0, eval_batch_size=1)
    found = {}
    for batch in data.val_dataloader():
        steps = batch.features.mT
        logits, _ = network.eval()(steps, network.state_for(steps))
        found[batch.video_ids[0]] = (logits[0].sigmoid(), batch)
    return found


@pytest.mark.parametrize("changes", [{"eval_overlap": 0.0}, {"eval_overlap": 0.5}, {"eval_batch_size": 1}], ids=str)
def test_windows_one_after_the_other_give_the_scores_of_whole_videos(tmp_path, changes):
    ours = module().eval()
    pieces: dict[str, list] = {}
    with torch.no_grad():
        for number, batch in enumerate(opened(tmp_path, **changes).val_dataloader()):
            for entry in ours.predict_step(batch, number):
                pieces.setdefault(entry["video_id"], []).append(entry)
        whole = whole_videos(ours.network, tmp_path)
    assert pieces.keys() == whole.keys() and len(whole) == 3
    for video, (scores, batch) in whole.items():
        torch.testing.assert_close(torch.cat([piece["frame_scores"] for piece in pieces[video]]), scores)
        assert torch.equal(torch.cat([piece["times"] for piece in pieces[video]]), batch.times[0])


def test_validation_logs_the_metric_of_every_frame_once(tmp_path):
    ours = module()
    logged = trainer(tmp_path).validate(ours, features(tmp_path), verbose=False)[0]
    metric = PerFrameMeanAveragePrecision(3)
    with torch.no_grad():
        for scores, batch in whole_videos(ours.network, tmp_path).values():
            spans = (batch.video_segments[0], batch.video_labels[0], batch.video_ambiguous[0])
            metric.update(scores, *frame_targets(batch.times[0], *spans, 3))
    result = metric.compute()
    assert int(result["num_frames"]) == 120
    assert logged["val/map"] == pytest.approx(float(result["map"]))
    assert logged["val/calibrated_map"] == pytest.approx(float(result["calibrated_map"]))
    assert logged["val/ap/wave"] == pytest.approx(float(result["map_per_class"][1]))


def test_training_learns_which_channel_shows_which_action(tmp_path):
    ours = module(optimizer=lambda groups: torch.optim.AdamW(groups, lr=0.02))
    data = features(tmp_path)
    run = trainer(tmp_path, max_epochs=15, limit_val_batches=0)
    run.fit(ours, data)
    assert trainer(tmp_path).validate(ours, data, verbose=False)[0]["val/map"] > 0.8


def test_padding_and_ambiguous_steps_do_not_train():
    logits = torch.randn(1, 4, 2, requires_grad=True)
    targets = torch.tensor([[[1, 0], [0, 0], [1, 1], [0, 1]]], dtype=torch.bool)
    counted = torch.tensor([[True, False, True, False]])
    loss = frame_loss(logits, targets, counted)
    p = logits.detach()[0].sigmoid().double()
    by_hand = -(p[0, 0].log() + (1 - p[0, 1]).log() + p[2, 0].log() + p[2, 1].log()) / 4
    assert float(loss.detach()) == pytest.approx(float(by_hand), rel=1e-5)
    loss.backward()
    assert logits.grad[0, [0, 2]].all() and not logits.grad[0, [1, 3]].any()


def test_without_a_step_that_counts_the_loss_is_a_zero_with_gradient():
    logits = torch.randn(1, 3, 2, requires_grad=True)
    loss = frame_loss(logits, torch.zeros(1, 3, 2), torch.zeros(1, 3, dtype=torch.bool))
    loss.backward()
    assert loss == 0 and not logits.grad.any()


def test_targets_come_from_all_segments_of_the_video_at_the_times_of_the_steps(tmp_path):
    batch = next(iter(opened(tmp_path).val_dataloader()))
    batch = batch._replace(video_ambiguous=(torch.tensor([[1.0, 2.0]], dtype=torch.float64),) * len(batch.mask))
    targets, ambiguous = module().targets(batch)
    # Video 3: action 0 from 2 to 4 s, 1 from 7 to 11 s, 1 from 15 to 18 s; steps of half a second, middles at 0.25.
    assert batch.video_ids[0] == "video_3"
    assert targets[0, :, 0].nonzero().flatten().tolist() == [4, 5, 6, 7]
    assert targets[0, :, 1].nonzero().flatten().tolist() == [14, 15]
    assert ambiguous[0].nonzero().flatten().tolist() == [2, 3]


def test_a_video_cut_short_leaves_nothing_to_the_next_evaluation(tmp_path):
    ours, data = module(), features(tmp_path, eval_overlap=0.0, eval_batch_size=1)
    expected = trainer(tmp_path).validate(ours, data, verbose=False)[0]
    trainer(tmp_path, limit_val_batches=1).validate(ours, data, verbose=False)  # as the sanity check does
    assert ours.video is not None
    assert trainer(tmp_path).validate(ours, data, verbose=False)[0] == expected


def test_windows_out_of_order_are_refused(tmp_path):
    ours = module()
    batch = next(iter(opened(tmp_path, eval_overlap=0.0, eval_batch_size=3).val_dataloader()))
    first, _, third = (row for row in range(3))
    ours.advance(batch._replace(video_ids=(batch.video_ids[first], "", "")))
    with pytest.raises(ValueError, match=r"a window of video_3 begins at 16.25 s, but the stream is at 8.25 s"):
        ours.advance(batch._replace(video_ids=("", "", batch.video_ids[third])))


def test_a_window_that_stands_in_does_not_count(tmp_path):
    ours = module()
    batch = next(iter(opened(tmp_path).val_dataloader()))
    assert ours.advance(batch._replace(video_ids=("",) * len(batch.mask))) == []
    assert ours.state is None


def test_frames_are_trained_on_as_well():
    network = FrameScores(TrunkFeatures(trunk_of("dsta", SIZES)), 2)
    ours = OnlineDetectionModule(network)
    ours.log_losses = lambda losses, batch_size: None
    batch = SegmentBatch(
        features=None,
        frames=torch.randint(0, 255, (2, 4, 3, 32, 32), dtype=torch.uint8),
        flow=None,
        mask=torch.tensor([[True] * 4, [True, True, False, False]]),
        is_new=torch.ones(2, 4, dtype=torch.bool),
        image_sizes=torch.tensor([[32, 32], [32, 32]]),
        times=torch.arange(4).double().expand(2, 4) + 0.5,
        step_seconds=torch.ones(2, dtype=torch.float64),
        segments=(torch.tensor([[1.0, 3.0]]).double(),) * 2,
        labels=(torch.tensor([1]),) * 2,
        video_segments=(torch.tensor([[1.0, 3.0]]).double(),) * 2,
        video_labels=(torch.tensor([1]),) * 2,
        video_ambiguous=(torch.zeros(0, 2).double(),) * 2,
        video_ids=("a", "b"),
        durations=torch.tensor([4.0, 2.0]),
        is_last=torch.tensor([True, True]),
    )
    loss = ours.training_step(batch, 0)
    loss.backward()
    assert all(p.grad is not None for p in network.parameters())
    other = batch.frames.clone()
    other[1, 2:] = 0
    assert torch.equal(ours.training_step(batch._replace(frames=other), 0), loss)  # what is after the end


def test_the_temporal_gradient_is_refused():
    with pytest.raises(ValueError, match="temporal_gradient needs the frame before a window"):
        OnlineDetectionModule(module().network, modality="temporal_gradient")


def test_a_step_of_the_stream_can_be_measured(tmp_path):
    ours = module().eval()
    trainer(tmp_path).validate(ours, features(tmp_path), verbose=False)
    assert "per-frame mAP" in ours.protocol and "marked features" in ours.protocol
    with torch.no_grad():
        benchmark = ours.benchmark()
        assert benchmark.step().shape == (1, 1, 3) and benchmark.unit == "frame"
        assert not torch.equal(benchmark.step(), benchmark.step())  # the state moves on
    assert count_gflops(benchmark.network, *benchmark.inputs).gflops > 0
    assert benchmark.state is benchmark.inputs[1]
