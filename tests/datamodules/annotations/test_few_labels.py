"""Fewer labels than there are, and windows of videos without any."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from datamodules.annotations.few_labels import FewLabels, WithUnlabelled
from datamodules.annotations.mistakes import Mistake
from datamodules.annotations.source import AnnotatedVideo, DetectionSource
from datamodules.errors import UserError
from datamodules.sampling.samplers import MixedBatches
from datamodules.stream import StreamDataModule
from lightning_modules.networks.weights.loading import save_weights
from lightning_modules.stream_distillation import DistillationModule
from tests.datamodules.miniature import FPS, NumberedVideos, read_numbers
from tests.flat_data import stream_data
from tests.lightning_modules import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("few_labels")


@pytest.fixture(scope="module")
def source(folder):
    """Six training videos of 9 to 40 frames, annotated at 1, 4, 7, ..., and one to evaluate."""
    source = NumberedVideos(folder / "labelled", lengths=(40, 24, 33, 40, 9, 26, 14), training=6)
    source.folder.mkdir(exist_ok=True)
    source.prepare()
    return source


def frames_of(video: AnnotatedVideo) -> list[int]:
    return [round(keyframe.timestamp * FPS) for keyframe in video.keyframes]


def test_every_nth_label_is_kept_from_a_random_one_of_the_first_on(source):
    whole, few = source.videos("train"), FewLabels(source, every=3, seed=1).videos("train")
    assert [video.video_id for video in few] == [video.video_id for video in whole]
    firsts = set()
    for full, kept in zip(whole, few, strict=True):
        first = frames_of(full).index(frames_of(kept)[0])
        assert first < 3 and frames_of(kept) == frames_of(full)[first::3]
        firsts.add(first)
    assert len(firsts) > 1
    assert len({tuple(map(tuple, map(frames_of, FewLabels(source, 3, seed=s).videos("train")))) for s in range(9)}) > 3


@pytest.mark.parametrize(("share", "count"), [(1.0, 6), (0.5, 3), (0.3, 2), (0.01, 1)])
def test_a_share_of_the_videos_keeps_all_of_its_labels_and_a_smaller_share_is_part_of_it(source, share, count):
    def labelled(share: float, seed: int) -> set[str]:
        videos = FewLabels(source, labelled_videos=share, seed=seed).videos("train")
        assert len(videos) == 6
        for kept, full in zip(videos, source.videos("train"), strict=True):
            assert frames_of(kept) in ([], frames_of(full))
        return {video.video_id for video in videos if video.keyframes}

    assert all(len(labelled(share, seed)) == count for seed in range(5))
    assert all(labelled(0.01, seed) <= labelled(share, seed) for seed in range(5))
    assert len({tuple(sorted(labelled(0.3, seed))) for seed in range(9)}) > 3


def test_the_choice_depends_neither_on_the_order_of_the_videos_nor_on_the_other_videos(source):
    class Backwards(NumberedVideos):
        def videos(self, split):
            return super().videos(split)[::-1]

    other = Backwards(source.folder, source.lengths, source.training)
    choices = [
        {video.video_id: frames_of(video) for video in FewLabels(s, 2, 0.5, seed=3).videos("train")}
        for s in (source, other)
    ]
    assert choices[0] == choices[1]


def test_everything_else_is_that_of_the_source(source, folder):
    class Film(NumberedVideos):
        start_seconds = 900.0

        def evaluated_classes(self):
            return (1,)

    film = Film(source.folder, source.lengths, source.training)
    for wrapped in (FewLabels(film, 2, 0.5), WithUnlabelled(film, folder)):
        assert wrapped.start_seconds == 900.0 and wrapped.evaluated_classes() == (1,)
        assert wrapped.class_names() == film.class_names()
        for split in ("val", "test"):
            ids, expected = ([v.video_id for v in s.videos(split)] for s in (wrapped, film))
            assert ids == expected and all(video.keyframes for video in wrapped.videos(split))
        assert wrapped.mistakes is None
        wrapped.mistakes = [Mistake("kind", "where", "seen")]
        assert film.mistakes is wrapped.mistakes
        film.mistakes = None


@pytest.mark.parametrize("arguments", [{"every": 0}, {"labelled_videos": 0.0}, {"labelled_videos": 1.5}])
def test_shares_that_cannot_be_are_refused(source, arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        FewLabels(source, **arguments)


@pytest.fixture(scope="module")
def unlabelled(folder, source):
    """Two videos under other names, one of them in a folder of its own."""
    (folder / "camera" / "monday").mkdir(parents=True)
    shutil.copy(source.folder / "video_0.mp4", folder / "camera" / "garden.mp4")
    shutil.copy(source.folder / "video_1.mp4", folder / "camera" / "monday" / "door.mp4")
    return folder / "camera"


def opened(source: DetectionSource, folder, **arguments) -> StreamDataModule:
    settings = {"frame_stride": 2, "train_past_frames": 5, "loss_frames": 2, "batch_size": 4, "horizontal_flip": 0.0}
    data = stream_data(source, **(settings | {"cache": folder / "cache"} | arguments))
    data.prepare_data()
    data.setup("fit")
    return data


def test_windows_of_videos_without_labels_end_at_every_sampled_frame_and_carry_none(source, folder, unlabelled):
    data = opened(source, folder, unlabelled=unlabelled, unlabelled_share=0.75, samples_per_epoch=64)
    of_kind, ends = {True: 0, False: 0}, {"garden": set(), "monday/door": set()}
    for batch in data.train_dataloader():
        for row, video in enumerate(batch.video_ids):
            bare = video in ends
            of_kind[bare] += 1
            assert batch.annotated[row].tolist() == ([False, False] if bare else [False, True])
            if bare:
                pictures = batch.frames[row, ..., :96, :128].permute(0, 2, 3, 1).numpy()
                last = read_numbers(pictures)[-1]
                assert round(float(batch.timestamps[row, -1]) * FPS) == last
                ends[video].add(last)
    assert of_kind == {True: 48, False: 16}
    # 20 and 12 frames at stride 2, each taken once before any is taken twice.
    assert ends == {"garden": set(range(0, 40, 2)), "monday/door": set(range(0, 24, 2))}


def test_videos_of_the_source_that_have_lost_their_labels_are_drawn_too(source, folder):
    few = FewLabels(source, labelled_videos=0.3, seed=0)
    without = {video.video_id for video in few.videos("train") if not video.keyframes}
    alone = {name for batch in opened(few, folder).train_dataloader() for name in batch.video_ids}
    assert alone.isdisjoint(without) and len(alone) == 2
    data = opened(few, folder, unlabelled_share=0.5, samples_per_epoch=200)
    drawn = [name for batch in data.train_dataloader() for name in batch.video_ids]
    assert sum(name in without for name in drawn) == 100 and set(drawn) == alone | without


def test_half_of_the_windows_are_unlabelled_unless_told_otherwise_and_none_without_such_videos(
    source, folder, unlabelled
):
    data = opened(source, folder, unlabelled=unlabelled)
    assert data.unlabelled.share == 0.5 and opened(source, folder).unlabelled is None
    names = [name for batch in data.train_dataloader() for name in batch.video_ids]
    labelled = sum(len(video.keyframes) for video in source.videos("train"))
    assert len(names) == 2 * labelled // 4 * 4
    assert abs(sum(name in ("garden", "monday/door") for name in names) - labelled) <= 4


def test_what_cannot_be_drawn_is_refused_with_the_way_out(source, folder, unlabelled):
    with pytest.raises(UserError, match=r"data\.unlabelled: .* name a folder"):
        opened(source, folder, unlabelled_share=0.5).train_dataloader()
    for arguments in ({"unlabelled": unlabelled, "unlabelled_share": 0.0}, {"unlabelled_share": 1.0}):
        with pytest.raises(ValueError, match=r"unlabelled\.share"):
            opened(source, folder, **arguments)
    with pytest.raises(UserError, match=r"6 videos named as those with labels: video_0, .*; rename them"):
        opened(source, folder, unlabelled=_only(source, folder))


def test_a_folder_that_holds_labelled_videos_too_adds_the_others_and_evaluated_ones_are_told(source, folder):
    added = WithUnlabelled(source, source.folder)
    train, val = ({video.path.stem for video in source.videos(split)} for split in ("train", "val"))
    bare = [video for video in added.videos("train") if not video.keyframes]
    assert {video.path.stem for video in bare} == val and len(added.videos("train")) == len(train | val)
    with pytest.warns(UserWarning, match=rf"WithUnlabelled: {len(val)} videos to evaluate are trained on too"):
        opened(source, folder, unlabelled=source.folder)


def _only(source, folder):
    """A folder of the source's own training videos."""
    again = folder / "again"
    again.mkdir(exist_ok=True)
    for video in source.videos("train"):
        shutil.copy(video.path, again)
    return again


@pytest.mark.parametrize("samples_per_epoch", [None, 40])
def test_two_kinds_of_samples_are_mixed_in_their_proportion_and_shared_among_ranks(samples_per_epoch):
    def drawn(epoch: int, seed: int = 1) -> list[int]:
        ranks = [MixedBatches(15, 100, 0.25, 2, samples_per_epoch, seed, rank, 2) for rank in range(2)]
        for sampler in ranks:
            sampler.set_epoch(epoch)
        return [request.index for sampler in ranks for batch in sampler for request in batch]

    first = np.bincount(drawn(0), minlength=115)
    assert (first[:15].sum(), first[15:].sum()) == {None: (15, 5), 40: (30, 10)}[samples_per_epoch]
    assert first[:15].max() - first[:15].min() == 0 and first[15:].max() == 1
    assert drawn(0) == drawn(0) and drawn(0) != drawn(1) and drawn(0) != drawn(0, seed=2)


@pytest.mark.parametrize(("others", "share"), [(0, 0.5), (10, 0.0), (10, 1.0)])
def test_a_share_that_cannot_be_drawn_is_refused(others, share):
    with pytest.raises(ValueError, match="cannot be drawn"):
        MixedBatches(15, others, share, 2, None, 0)


def test_on_a_window_without_labels_the_teacher_alone_teaches(source, folder, unlabelled, tmp_path):
    """The ground truth gives zeros there, the teacher gives gradients."""
    save_weights(tiny.teacher(seed=3).state_dict(), tmp_path / "teacher.pt")
    module = DistillationModule(
        network=tiny.student(), teacher=lambda _: tiny.teacher(), teacher_weights=str(tmp_path / "teacher.pt")
    )
    wanted = {"unlabelled": unlabelled, "train_future_frames": 1, "short_side": 64, "batch_size": 1}
    data = opened(source, folder, **wanted, samples_per_epoch=2)
    losses = []

    class Seen(tiny.L.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            losses.append((bool(batch.annotated.any()), metrics["train/loss/detection"], metrics["train/loss/actions"]))

        def on_after_backward(self, trainer, module):
            gradients = [p.grad for p in module.network.parameters() if p.grad is not None]
            assert all(torch.isfinite(gradient).all() for gradient in gradients)
            assert any(gradient.abs().max() > 0 for gradient in gradients)

    tiny.trainer(tmp_path, max_epochs=3, callbacks=[Seen()], limit_val_batches=0).fit(module, datamodule=data)
    assert {annotated for annotated, *_ in losses} == {True, False}
    for annotated, detection, actions in losses:
        assert (detection > 0) is annotated and actions > 0
