"""Videos that cannot be read stop a run, or are left out and told, wherever they turn out to be broken."""

import multiprocessing
import os
import warnings
from functools import partialmethod

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from datamodules.annotations.own_videos import OwnVideos
from datamodules.frames.cache import FrameCache
from datamodules.video.broken import BrokenVideos
from datamodules.video.listing import VideoError
from datamodules.video.readers import open_video
from tests.datamodules.miniature import FPS, NumberedVideos, assert_same_batch, damage, encode, read_numbers
from tests.flat_data import clip_data, stream_data

LENGTHS = (40, 24, 33, 36, 20)
DAMAGED = {1: 12, 3: 20}
"""The frame at which decoding of a video stops: one video of training, one of evaluation."""


class DamagedVideos(NumberedVideos):
    """Numbered videos in groups of four frames, some of which open and fail when they are decoded."""

    def prepare(self):
        for number, length in enumerate(self.lengths):
            path = self.folder / f"video_{number}.mp4"
            if not path.exists():
                encode(path, length, rate=FPS, g="4", bf="0", sc_threshold="0", preset="ultrafast", threads="1")
                if number in DAMAGED:
                    damage(path, DAMAGED[number])


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    source = DamagedVideos(tmp_path_factory.mktemp("videos"), LENGTHS, every=1)
    source.prepare()
    return source


def path(source, number):
    return source.folder / f"video_{number}.mp4"


def clips(source, stage="fit", **arguments):
    settings = {"num_frames": 4, "frame_stride": 1, "batch_size": 4, "cache": None, "horizontal_flip": 0.0}
    data = clip_data(source, **(settings | {"on_error": "skip"} | arguments))
    data.prepare_data()
    data.setup(stage)
    return data


def streams(source, stage="validate", **arguments):
    settings = {"frame_stride": 2, "train_past_frames": 3, "lanes": 1, "chunk_frames": 4, "cache": None}
    data = stream_data(source, **(settings | {"on_error": "skip"} | arguments))
    data.prepare_data()
    data.setup(stage)
    return data


def shown(batch):
    """Names and frame numbers of each clip."""
    frames = batch.frames[..., :96, :128].permute(0, 1, 3, 4, 2).numpy()
    return [(video, read_numbers(clip)) for video, clip in zip(batch.video_ids, frames, strict=True)]


def unreadable(number, frames):
    """Return whether any of the frames cannot be decoded: those from the damage on up to the next group of four."""
    first = DAMAGED.get(number, 10**6)
    return any(first <= frame < first // 4 * 4 + 4 for frame in frames)


def test_the_damaged_videos_open_and_fail_in_the_middle(source):
    for number, frame in DAMAGED.items():
        with open_video(path(source, number)) as reader:
            assert reader.num_frames == LENGTHS[number]
            assert read_numbers(reader.get(range(frame))) == list(range(frame))
            with pytest.raises(VideoError, match=f"video_{number}.mp4: corrupt at frame {frame}"):
                reader.get([frame])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_stops_at_a_broken_video_unless_told_otherwise(source, workers):
    data = clips(source, on_error="raise", num_workers=workers)
    with pytest.raises(VideoError, match=r"video_1\.mp4: corrupt at frame 12"):
        list(data.train_dataloader())
    with pytest.raises(VideoError, match=r"video_3\.mp4: corrupt at frame 20"):
        list(data.val_dataloader())
    assert data.broken == {}


def test_in_training_another_sample_takes_the_place_of_one_that_cannot_be_read(source):
    data = clips(source, batch_size=2)
    batches = list(data.train_dataloader())
    assert [len(batch.frames) for batch in batches] == [2] * ((39 + 23) // 2)
    for batch in batches:
        assert batch.annotated.all() and all(len(boxes) == 2 for boxes in batch.boxes)
        for video, numbers in shown(batch):
            assert not unreadable(int(video[-1]), numbers)
            assert numbers[2] - numbers[1] in (0, 1)
    clamped = [np.clip(range(f - 2, f + 2), 0, 23) for f in range(1, 24)]
    readable = [f for f, frames in zip(range(1, 24), clamped, strict=True) if not unreadable(1, frames)]
    taken = {numbers[2] for batch in batches for video, numbers in shown(batch) if video == "video_1"}
    assert taken == set(readable) and len(readable) < 23
    assert list(data.broken) == [str(path(source, 1))]
    assert "corrupt at frame 12" in data.broken[str(path(source, 1))]


def test_what_stands_for_a_broken_sample_does_not_depend_on_workers_or_on_earlier_epochs(source):
    runs = []
    for workers in (0, 2):
        data = clips(source, num_workers=workers, horizontal_flip=0.5, brightness=0.2)
        loader = data.train_dataloader()
        runs.append([list(loader), list(loader)])
        assert list(data.broken) == [str(path(source, 1))]
    (first, again), (by_workers, by_workers_again) = runs
    for batches in zip(first, again, by_workers, by_workers_again, strict=True):
        for other in batches[1:]:
            assert_same_batch(batches[0], other)


@pytest.mark.parametrize("workers", [0, 2])
def test_clips_that_cannot_be_read_do_not_count_in_evaluation(source, workers):
    data = clips(source, "validate", num_workers=workers)
    found = []
    for batch in data.val_dataloader():
        for row, (video, numbers) in enumerate(shown(batch)):
            if video:
                found.append((video, numbers[2]))
                assert batch.annotated[row].all() and len(batch.boxes[row]) == 2
            else:
                assert not batch.annotated[row].any() and not batch.frames[row].any() and len(batch.boxes[row]) == 0
    expected = [
        (f"video_{number}", f)
        for number in (2, 3, 4)
        for f in range(1, LENGTHS[number])
        if not unreadable(number, np.clip(range(f - 2, f + 2), 0, LENGTHS[number] - 1))
    ]
    assert sorted(found) == sorted(expected)
    assert len(expected) < sum(length - 1 for length in LENGTHS[2:])
    assert list(data.broken) == [str(path(source, 3))]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_ends_before_the_damage_and_the_next_video_begins(source, workers):
    data = streams(source, num_workers=workers)
    for _ in range(2):
        frames = {}
        for batch in data.val_dataloader():
            valid = batch.is_valid[0]
            (video,) = batch.video_ids
            assert (video == "") == (not valid.any())
            assert batch.is_first.item() == (video != "" and video not in frames)
            assert not (batch.annotated[0] & ~valid).any()
            if video:
                numbers = read_numbers(batch.frames[0, valid, :, :96, :128].permute(0, 2, 3, 1).numpy())
                frames.setdefault(video, []).extend(numbers)
        # Chunks are of the frames 0 2 4 6, 8 10 12 14, 16 18 20 22, ...; frame 20 is damaged.
        assert frames == {
            "video_2": list(range(0, 33, 2)),
            "video_3": list(range(0, 16, 2)),
            "video_4": list(range(0, 20, 2)),
        }
        assert list(data.broken) == [str(path(source, 3))]


@pytest.mark.parametrize("cache", [True, False])
def test_a_video_that_does_not_open_is_left_out_from_the_start(tmp_path, cache):
    source = NumberedVideos(tmp_path, (9, 9, 9, 9))
    source.prepare()
    (tmp_path / "video_1.mp4").write_text("no video")
    (tmp_path / "video_2.mp4").unlink()
    (tmp_path / "video_2.mp4").symlink_to(tmp_path / "nowhere.mp4")
    folder = tmp_path / "cache" if cache else None
    source.prepare = lambda: None  # nor write it again
    data = clips(source, cache=folder)
    assert [video.video_id for video in data.videos("train")] == ["video_0"]
    assert [video.video_id for video in data.videos("val")] == ["video_3"]
    assert list(data.broken) == [str(tmp_path / "video_1.mp4"), str(tmp_path / "video_2.mp4")]
    with pytest.warns(UserWarning, match="2 broken videos were skipped: .*video_1.mp4: .*video_2.mp4: no such video"):
        assert {keyframe.video_id for keyframe in data.true_keyframes("val")} == {"video_3"}
    with pytest.raises(VideoError, match=r"video_1\.mp4: not a readable video"):
        clips(source, cache=folder, on_error="raise")


@pytest.mark.parametrize("workers", [None, 2])
def test_a_video_that_cannot_be_decoded_into_the_cache_is_tried_once(source, tmp_path, monkeypatch, workers):
    data = clip_data(source, num_frames=4, cache=tmp_path / "cache", on_error="skip")
    build = partialmethod(FrameCache.build, workers=workers)
    monkeypatch.setattr(FrameCache, "build", build)
    data.prepare_data()
    monkeypatch.setattr("datamodules.frames.cache.open_video", None)
    data.prepare_data()
    data.setup("fit")
    assert [video.video_id for video in data.videos("train")] == ["video_0"]
    assert [video.video_id for video in data.videos("val")] == ["video_2", "video_4"]
    assert list(data.broken) == [str(path(source, number)) for number in DAMAGED]
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_own_videos_with_boxes_in_pixels_are_left_out_alike(tmp_path):
    for name in ("good", "bad", "other"):
        encode(tmp_path / f"{name}.mp4", 30, preset="ultrafast", threads="1")
    (tmp_path / "bad.mp4").write_text("no video")
    (tmp_path / "boxes.csv").write_text("".join(f"{name},0.5,16,24,48,72,1,0\n" for name in ("good", "bad", "other")))
    (tmp_path / "classes.txt").write_text("walk\n")
    files = {"videos": tmp_path, "annotations": tmp_path / "boxes.csv", "classes": tmp_path / "classes.txt"}
    both = {"train": ["good", "bad"], "val": ["other"], "box_units": "absolute"}
    data = clips(OwnVideos(**files, **both))
    (video,) = data.videos("train")
    np.testing.assert_allclose(video.boxes[0], [[0.125, 0.25, 0.375, 0.75]])
    assert list(data.broken) == [str(tmp_path / "bad.mp4")]
    with pytest.raises(VideoError, match=r"bad\.mp4: not a readable video"):
        clips(OwnVideos(**files, **both), on_error="raise")


def test_a_video_shorter_than_its_annotation_is_broken(tmp_path):
    source = NumberedVideos(tmp_path, (40, 40, 9))
    source.prepare()
    NumberedVideos(tmp_path / "short", (9, 9)).prepare()
    (tmp_path / "short/video_1.mp4").replace(tmp_path / "video_1.mp4")
    data = clips(source)
    assert "video_1.mp4 is annotated from" in data.broken[str(tmp_path / "video_1.mp4")]


def test_nothing_readable_is_an_error(tmp_path):
    source = NumberedVideos(tmp_path, (9, 9, 9))
    for number in range(2):
        (tmp_path / f"video_{number}.mp4").touch()
    source.prepare()
    with pytest.raises(VideoError, match=r"none of 2 videos can be read; the first: .*video_0\.mp4: the file is empty"):
        clips(source)


def test_training_on_nothing_that_can_be_decoded_is_an_error(source):
    class Damaged(DamagedVideos):
        def _keyframe(self, frame):
            return super()._keyframe(12 + frame % 2)  # in the damaged group of pictures

        def videos(self, split):
            return super().videos(split)[1:2]

    with pytest.raises(
        VideoError, match=r"100 samples in a row cannot be read; the last: .*video_1\.mp4: corrupt at frame 12"
    ):
        next(iter(clips(Damaged(source.folder, LENGTHS, every=1)).train_dataloader()))


def test_files_to_predict_on_are_left_out_alike(source):
    files = [path(source, 0), source.folder / "absent.mp4"]
    data = streams(source, "predict", predict_videos=files)
    assert {video for batch in data.predict_dataloader() for video in batch.video_ids} == {"video_0"}
    assert list(data.broken) == [str(source.folder / "absent.mp4")]


class Silent(LightningModule):
    """Runs through the data."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, index):
        return self.weight * batch.frames.float().mean()

    def validation_step(self, batch, index):
        """Nothing."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_the_end_of_an_epoch_tells_what_was_skipped_once(source, tmp_path, workers):
    data = clip_data(source, 4, 1, batch_size=8, num_workers=workers, cache=None, on_error="skip")
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        default_root_dir=tmp_path, max_epochs=2, accelerator="cpu", num_sanity_val_steps=0,
        enable_checkpointing=False, **quiet
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(Silent(), data)
    told = [str(warning.message) for warning in caught if "broken videos" in str(warning.message)]
    (told,) = told  # validation ends within the first epoch of training: it tells of both
    assert told.startswith("2 broken videos were skipped: ")
    assert "video_1.mp4: corrupt at frame 12" in told and "video_3.mp4: corrupt at frame 20" in told
    assert len(data.broken) == 2


def test_every_process_tells_what_it_alone_came_upon():
    broken = BrokenVideos()
    broken.add("a.mp4", "a.mp4: does not open", of_all=True)
    with pytest.warns(UserWarning, match=r"^1 broken videos were skipped: a\.mp4: does not open$"):
        broken.report(rank=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        broken.report(rank=0)
    other = BrokenVideos()
    other.add("a.mp4", "a.mp4: does not open", of_all=True)
    other.add("b.mp4", "b.mp4: corrupt")
    with pytest.warns(UserWarning, match=r"^process 1: 1 broken videos were skipped: b\.mp4: corrupt$"):
        other.report(rank=1)


def test_many_broken_videos_are_counted_and_the_first_are_named():
    broken = BrokenVideos()
    for number in range(500):
        broken.add(f"{number}.mp4", f"{number}.mp4: corrupt")
    with pytest.warns(UserWarning, match=r"^500 broken videos were skipped: 0\.mp4: .*19\.mp4: corrupt \.\.\. and 480"):
        broken.report()


def test_the_file_that_workers_write_to_goes_with_its_owner():
    broken = BrokenVideos()
    broken.prepare()
    file = broken._file
    process = multiprocessing.get_context("fork").Process(target=os.getpid)
    process.start()
    process.join()
    assert file.exists()
    del broken
    assert not file.exists()
