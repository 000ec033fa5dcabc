import pickle

import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything

from datamodules.annotations.source import Keyframe
from datamodules.clip import ClipDataModule
from datamodules.sampling.samplers import GLOBAL_SEED, STAND_IN, EveryOnce, ShuffledBatches
from tests.datamodules.miniature import FPS, NumberedVideos, assert_same_batch, read_numbers
from tests.flat_data import clip_data, stream_data


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    source = NumberedVideos(tmp_path_factory.mktemp("videos"))
    source.prepare()
    return source


def opened(source, tmp_path, stage="fit", **arguments) -> ClipDataModule:
    settings = {
        "num_frames": 4,
        "frame_stride": 2,
        "batch_size": 4,
        "cache": tmp_path / "cache",
        "horizontal_flip": 0.0,
    }
    data = clip_data(source, **(settings | arguments))
    data.prepare_data()
    data.setup(stage)
    return data


def numbers_of(batch) -> list[list[int]]:
    """The frame numbers of each clip of a batch."""
    height, width = batch.image_sizes[0].tolist()
    clips = batch.frames[..., :height, :width].permute(0, 1, 3, 4, 2).numpy()
    return [read_numbers(clip) for clip in clips]


def test_constructors_touch_no_disk(tmp_path):
    data = clip_data(NumberedVideos(tmp_path / "absent"), cache=tmp_path / "cache")
    assert data.num_classes == 2 and data.class_names == ("walk", "wave")
    assert list(tmp_path.iterdir()) == []


def test_a_clip_batch_keeps_its_agreement(source, tmp_path):
    batch = next(iter(opened(source, tmp_path).train_dataloader()))
    assert batch.frames.shape == (4, 4, 3, 96, 128) and batch.frames.dtype == torch.uint8
    assert batch.frames.is_contiguous()
    assert batch.image_sizes.tolist() == batch.original_sizes.tolist() == [[96, 128]] * 4
    assert batch.keyframes == (2,)
    assert batch.annotated.tolist() == [[True]] * 4
    assert batch.timestamps.shape == (4, 1) and batch.timestamps.dtype == torch.float64
    for boxes, labels in zip(batch.boxes, batch.labels, strict=True):
        torch.testing.assert_close(boxes, torch.tensor([[16.0, 24, 48, 72], [64, 24, 112, 96]]))
        torch.testing.assert_close(labels, torch.tensor([[1.0, 0], [1, 1]]))


def test_the_keyframe_of_a_clip_is_the_annotated_frame(source, tmp_path):
    for arguments in ({}, {"past_frames": 4}, {"past_frames": 1}, {"frame_stride": 0}):
        data = opened(source, tmp_path, **arguments)
        for batch in data.train_dataloader():
            (position,) = batch.keyframes
            for numbers, video, (timestamp,) in zip(numbers_of(batch), batch.video_ids, batch.timestamps, strict=True):
                keyframe = round(float(timestamp) * FPS)
                assert numbers[position] == keyframe
                stride, last = data.window.stride, source.lengths[int(video[-1])] - 1
                expected = [min(max(keyframe + stride * (i - position), 0), last) for i in range(4)]
                assert numbers == expected


def test_an_epoch_takes_each_annotated_keyframe_once_in_a_new_order(source, tmp_path):
    loader = opened(source, tmp_path, batch_size=1).train_dataloader()
    epochs = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        epochs.append([(batch.video_ids[0], batch.timestamps.item()) for batch in loader])
    annotated = sorted((video.video_id, k.timestamp) for video in source.videos("train") for k in video.keyframes)
    assert sorted(epochs[0]) == sorted(epochs[1]) == annotated
    assert epochs[0] != epochs[1]


def test_results_depend_neither_on_workers_nor_on_the_cache(source, tmp_path):
    augmentation = {"horizontal_flip": 0.5, "scale_range": (0.8, 1.2), "brightness": 0.2, "seed": 5}
    runs = [
        list(opened(source, tmp_path, **augmentation, **arguments).train_dataloader())
        for arguments in ({}, {}, {"num_workers": 2}, {"cache": None}, {"cache": None, "num_workers": 1})
    ]
    for run in runs[1:]:
        for ours, theirs in zip(runs[0], run, strict=True):
            assert_same_batch(ours, theirs)


def test_data_sets_travel_to_spawned_workers(source, tmp_path):
    loader = opened(source, tmp_path, num_workers=0).train_dataloader()
    first = next(iter(loader))
    dataset = pickle.loads(pickle.dumps(loader.dataset))
    assert_same_batch(first, dataset[next(iter(loader.sampler))])


def test_evaluation_takes_the_keyframes_that_a_stream_is_scored_on(source, tmp_path):
    clips = opened(source, tmp_path, "validate", frame_stride=4)
    stream = stream_data(source, frame_stride=4, lanes=2, chunk_frames=3, cache=tmp_path / "cache")
    stream.setup("validate")
    by_clip = [
        (video, float(t), boxes.tolist())
        for batch in clips.val_dataloader()
        for video, t, boxes in zip(batch.video_ids, batch.timestamps[:, 0], batch.boxes, strict=True)
    ]
    by_stream = [
        (batch.video_ids[lane], float(batch.timestamps[lane, at]), batch.boxes[lane * 3 + at].tolist())
        for batch in stream.val_dataloader()
        for lane in range(len(batch.video_ids))
        for at in range(3)
        if batch.annotated[lane, at]
    ]
    assert sorted(by_clip) == sorted(by_stream)
    # Annotated are 1, 4, 7, ..., 31 of 33 frames; slots begin at 0, 4, ..., 32.
    assert [t * FPS for _, t, _ in sorted(by_clip)] == [1, 4, 10, 13, 16, 22, 25, 28]


def test_evaluation_is_the_same_each_time(source, tmp_path):
    data = opened(source, tmp_path, "validate", scale_range=(0.5, 2.0), horizontal_flip=1.0)
    for ours, theirs in zip(data.val_dataloader(), data.val_dataloader(), strict=True):
        assert_same_batch(ours, theirs)
        assert [numbers[2] for numbers in numbers_of(ours)] == (ours.timestamps[:, 0] * FPS).round().int().tolist()


def test_prediction_takes_a_clip_for_every_sampled_frame_of_any_file(source, tmp_path):
    files = [source.folder / "video_1.mp4"]
    data = clip_data(source, num_frames=4, frame_stride=5, cache=tmp_path / "cache", predict_videos=files)
    data.setup("predict")
    batches = list(data.predict_dataloader())
    assert [float(t) * FPS for batch in batches for t in batch.timestamps] == pytest.approx([0, 5, 10, 15, 20])
    assert [numbers[2] for batch in batches for numbers in numbers_of(batch)] == [0, 5, 10, 15, 20]
    assert not any(batch.annotated.any() for batch in batches)
    assert all(len(boxes) == 0 for batch in batches for boxes in batch.boxes)
    assert batches[0].labels[0].shape == (0, 2)
    assert not (tmp_path / "cache").exists()


def test_clips_of_several_sizes_are_padded_and_say_so(tmp_path):
    source = NumberedVideos(tmp_path / "v", lengths=(12, 12, 12), sizes=((96, 128), (160, 96), (64, 64)))
    data = opened(source, tmp_path, short_side=80, batch_size=8)
    batch = next(iter(data.train_dataloader()))
    assert batch.frames.shape == (8, 4, 3, 160, 128)
    for clip, (height, width), (old_height, old_width), boxes in zip(
        batch.frames, batch.image_sizes.tolist(), batch.original_sizes.tolist(), batch.boxes, strict=True
    ):
        assert ((old_height, old_width), (height, width)) in [((96, 128), (80, 107)), ((160, 96), (133, 80))]
        assert clip[..., :height, :width].any() and not clip[..., height:, :].any() and not clip[..., width:].any()
        torch.testing.assert_close(
            boxes[0], torch.tensor([0.125, 0.25, 0.375, 0.75]) * torch.tensor([width, height] * 2)
        )


def test_keyframes_without_boxes_are_for_evaluation(tmp_path):
    class Sparse(NumberedVideos):
        def _keyframe(self, frame):
            full = super()._keyframe(frame)
            return full if frame % 2 else Keyframe(full.timestamp, full.boxes[:0], full.labels[:0])

    source = Sparse(tmp_path / "v", every=1)
    data = opened(source, tmp_path, frame_stride=1, batch_size=1)
    assert all(len(batch.boxes[0]) == 2 for batch in data.train_dataloader())
    evaluated = list(data.val_dataloader())
    assert [len(batch.boxes[0]) for batch in evaluated] == [2 * (frame % 2) for frame in range(1, 33)]
    assert all(batch.annotated.all() for batch in evaluated)
    assert len(opened(source, tmp_path, min_keyframe_boxes=0, batch_size=1).train_dataloader()) == 39 + 23


def test_annotation_beyond_the_end_is_reported_with_the_file(source, tmp_path):
    class Late(NumberedVideos):
        def _keyframe(self, frame):
            return super()._keyframe(frame)._replace(timestamp=902.0 + frame)

    with pytest.raises(
        ValueError, match=r"video_0\.mp4 is annotated from 903\.00 s .* seconds from the start of the file"
    ):
        opened(Late(source.folder), tmp_path)


def test_what_cannot_work_is_refused(source, tmp_path):
    with pytest.raises(ValueError, match="past_frames"):
        clip_data(source, num_frames=4, past_frames=5)
    with pytest.raises(
        ValueError, match=r"every_frame: clips are scored on a grid of frames; set data\.keyframe_grid 1"
    ):
        clip_data(source, every_frame=True)
    nonsense = {"num_frames": 0, "batch_size": 0, "eval_batch_size": -1, "keyframe_grid": 0, "samples_per_epoch": 0}
    nonsense |= {"frame_stride": -1, "num_workers": -1, "short_side": 0, "min_keyframe_boxes": -1, "cache_max_gib": -1}
    for name, value in nonsense.items():
        with pytest.raises(ValueError, match=rf"{name} must be at least \d, got {value}$"):
            clip_data(source, **{name: value})
    with pytest.raises(ValueError, match="on_error must be one of raise, skip, got 'ignore'"):
        clip_data(source, on_error="ignore")
    with pytest.raises(ValueError, match="interpolation must be one of"):
        clip_data(source, interpolation="cubic")
    with pytest.raises(ValueError, match="no annotated keyframe"):
        opened(source, tmp_path, min_keyframe_boxes=3).train_dataloader()
    with pytest.raises(ValueError, match="call setup first"):
        clip_data(source).train_dataloader()


@pytest.mark.parametrize(
    ("size", "batch_size", "world_size", "num_kinds"),
    [(10, 4, 1, 1), (7, 1, 2, 1), (9, 8, 2, 1), (23, 4, 3, 5), (5, 8, 4, 2), (2, 4, 3, 1), (0, 4, 2, 1)],
)
def test_evaluation_takes_every_sample_once_in_equally_many_batches_of_one_kind(
    size, batch_size, world_size, num_kinds
):
    kinds = np.random.default_rng(0).integers(0, num_kinds, size)
    ranks = [list(EveryOnce(kinds, batch_size, rank, world_size)) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    taken = [[request.index for request in batch] for batches in ranks for batch in batches]
    assert sorted(index for batch in taken for index in batch if index != STAND_IN) == list(range(size))
    assert all(1 <= len(batch) <= batch_size and batch == sorted(batch) for batch in taken)
    assert all(batch == [STAND_IN] or len({kinds[index] for index in batch}) == 1 for batch in taken)
    assert sum(batch == [STAND_IN] for batch in taken) < world_size
    assert all(request.seed is None for batches in ranks for batch in batches for request in batch)


def test_the_batches_of_a_kind_follow_each_other():
    kinds = np.asarray([7, 2, 7, 7, 2, 7, 7])
    batches = [[request.index for request in batch] for batch in EveryOnce(kinds, 2)]
    assert batches == [[0, 2], [3, 5], [6], [1, 4]]


def test_too_few_samples_for_the_ranks_are_refused():
    with pytest.raises(ValueError, match="too few for 3 processes"):
        ShuffledBatches(2, 4, None, seed=0, rank=0, world_size=3)


@pytest.mark.parametrize("samples_per_epoch", [None, 12, 50])
def test_training_shares_an_epoch_among_the_ranks(samples_per_epoch):
    ranks = [ShuffledBatches(20, 3, samples_per_epoch, seed=1, rank=rank, world_size=2) for rank in range(2)]
    drawn = [[r.index for batch in sampler for r in batch] for sampler in ranks]
    assert len(drawn[0]) == len(drawn[1]) == 3 * len(ranks[0])
    together = np.bincount(drawn[0] + drawn[1], minlength=20)
    assert together.max() <= -(-(samples_per_epoch or 20) // 20)
    assert len(drawn[0]) == {None: 9, 12: 6, 50: 24}[samples_per_epoch]
    seeds = [r.seed for sampler in ranks for batch in sampler for r in batch]
    assert len(set(seeds)) == len(seeds)


def test_small_data_sets_make_small_batches():
    assert [len(batch) for batch in ShuffledBatches(3, 8, None, seed=0)] == [3]


def test_without_a_seed_of_its_own_an_order_follows_that_of_everything(monkeypatch):
    monkeypatch.setenv(GLOBAL_SEED, "1")  # so that it is put back afterwards, also where there was none
    monkeypatch.delenv(GLOBAL_SEED)

    def order(seed: int | None) -> list:
        return list(ShuffledBatches(20, 3, 12, seed=seed))

    assert order(None) == order(0)
    seed_everything(5)
    assert order(None) == order(5) != order(0)
    assert order(0) != order(5)  # its own goes first
