import shutil

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from datamodules.errors import UserError
from datamodules.stream import StreamDataModule
from tests.datamodules.miniature import FPS, NumberedVideos, assert_same_batch, read_numbers
from tests.flat_data import clip_data, stream_data


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    source = NumberedVideos(tmp_path_factory.mktemp("videos"), lengths=(40, 24, 33, 17, 5), training=2)
    source.prepare()
    return source


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def opened(source, stage="fit", **arguments) -> StreamDataModule:
    settings = {"frame_stride": 2, "train_past_frames": 5, "lanes": 2, "chunk_frames": 4, "horizontal_flip": 0.0}
    data = stream_data(source, **(settings | arguments))
    data.setup(stage)
    return data


def numbers_of(frames: torch.Tensor) -> list[int]:
    return read_numbers(frames[..., :96, :128].permute(0, 2, 3, 1).numpy())


def test_a_training_window_ends_at_an_annotated_frame_of_any_phase(source, cache):
    data = opened(source, train_future_frames=2, loss_frames=2, batch_size=3, cache=cache)
    seen = set()
    for batch in data.train_dataloader():
        assert batch.frames.shape == (3, 7, 3, 96, 128)
        assert batch.keyframes == (3, 4)
        for row, video in enumerate(batch.video_ids):
            last = round(float(batch.timestamps[row, 1]) * FPS)
            end = source.lengths[int(video[-1])] - 1
            assert numbers_of(batch.frames[row]) == [min(max(last + 2 * k, 0), end) for k in range(-4, 3)]
            seen.add(last % 2)
            # Annotated are 1, 4, 7, ..., so neither last - 2, the frame before, nor last - 1, which belongs to it.
            assert batch.annotated[row].tolist() == [False, True]
            assert [len(boxes) for boxes in batch.boxes[2 * row : 2 * row + 2]] == [0, 2]
    assert seen == {0, 1}


def test_unannotated_loss_frames_say_so(source, cache):
    data = opened(source, frame_stride=1, loss_frames=4, batch_size=1, cache=cache)
    for batch in data.train_dataloader():
        last = round(float(batch.timestamps[0, -1]) * FPS)
        shown = [last + k for k in range(-3, 1)]
        assert batch.annotated[0].tolist() == [frame >= 0 and frame % 3 == 1 for frame in shown]
        assert [len(boxes) for boxes in batch.boxes] == [2 if frame > 0 and frame % 3 == 1 else 0 for frame in shown]
        assert batch.labels[0].shape[1] == 2
        torch.testing.assert_close(batch.timestamps[0] * FPS, torch.tensor([max(f, 0) for f in shown]).double())


def test_loss_frames_take_the_annotation_that_belongs_to_their_slot(source, cache):
    data = opened(source, frame_stride=4, loss_frames=3, batch_size=1, cache=cache)
    for batch in data.train_dataloader():
        last = round(float(batch.timestamps[0, 2]) * FPS)
        # The slots before begin 8 and 4 frames earlier; of 1, 4, 7, ... the first at or after them is theirs.
        slots = [(last - 8, last - 6), (last - 4, last - 3), (last, last)]
        assert batch.annotated[0].tolist() == [shown >= 0 for shown, _ in slots]
        expected = [frame if shown >= 0 else max(shown, 0) for shown, frame in slots]
        torch.testing.assert_close(batch.timestamps[0] * FPS, torch.tensor(expected).double())


def test_student_and_teacher_see_the_same_frames_of_a_keyframe(source, cache):
    arguments = {"frame_stride": 3, "batch_size": 1, "horizontal_flip": 0.5, "scale_range": (0.8, 1.2), "seed": 2}
    teacher = clip_data(source, num_frames=6, cache=cache, **arguments)
    teacher.setup("fit")
    student = opened(source, train_past_frames=4, train_future_frames=2, cache=cache, **arguments)
    for clip, window in zip(teacher.train_dataloader(), student.train_dataloader(), strict=True):
        assert_same_batch(clip, window)


@pytest.mark.parametrize(("lanes", "chunk", "workers"), [(2, 4, 0), (1, 1, 0), (5, 3, 0), (2, 7, 1)])
def test_a_stream_shows_every_sampled_frame_of_every_video_once(source, cache, lanes, chunk, workers):
    data = opened(source, "validate", lanes=lanes, chunk_frames=chunk, num_workers=workers, cache=cache)
    shown: dict[str, list[int]] = {}
    for batch in data.val_dataloader():
        assert batch.frames.shape == (min(lanes, 3), chunk, 3, 96, 128) and batch.frames.is_contiguous()
        for lane, video in enumerate(batch.video_ids):
            valid = batch.is_valid[lane]
            assert valid.tolist() == sorted(valid.tolist(), reverse=True)
            assert (video == "") == (not valid.any())
            assert not batch.frames[lane][~valid].any()
            assert batch.is_first[lane].item() == (video != "" and video not in shown)
            if video:
                shown.setdefault(video, []).extend(numbers_of(batch.frames[lane][valid]))
            assert not batch.annotated[lane][~valid].any()
    assert shown == {f"video_{n}": list(range(0, source.lengths[n], 2)) for n in (2, 3, 4)}


def test_annotations_arrive_with_the_last_frame_at_or_before_them(source, cache):
    data = opened(source, "validate", frame_stride=4, lanes=3, chunk_frames=2, cache=cache)
    found = {}
    for batch in data.val_dataloader():
        for lane, at in batch.annotated.nonzero().tolist():
            shown = numbers_of(batch.frames[lane, at : at + 1])[0]
            found[batch.video_ids[lane], shown] = round(float(batch.timestamps[lane, at]) * FPS)
            torch.testing.assert_close(batch.boxes[lane * 2 + at][0], torch.tensor([16.0, 24, 48, 72]))
            assert batch.labels[lane * 2 + at].tolist() == [[1, 0], [1, 1]]
        for lane, at in (~batch.annotated & batch.is_valid).nonzero().tolist():
            assert len(batch.boxes[lane * 2 + at]) == 0
            shown = numbers_of(batch.frames[lane, at : at + 1])[0]
            assert float(batch.timestamps[lane, at]) * FPS == pytest.approx(shown)
    # Annotated: 1, 4, 7, ... Slot 0 has 1; slot 4 has 4 and 7 and keeps 4; slot 8 has 10; slot 12 has 13; ...
    expected = {0: 1, 4: 4, 8: 10, 12: 13, 16: 16, 20: 22, 24: 25, 28: 28}
    assert {shown: frame for (video, shown), frame in found.items() if video == "video_2"} == expected
    assert {shown: frame for (video, shown), frame in found.items() if video == "video_4"} == {0: 1, 4: 4}


@pytest.mark.parametrize(("lanes", "chunk"), [(1, 3), (2, 4)])
def test_where_every_frame_is_evaluated_a_video_is_a_stream_of_each_phase(source, cache, lanes, chunk):
    data = opened(source, "validate", frame_stride=4, lanes=lanes, chunk_frames=chunk, every_frame=True, cache=cache)
    streams: dict[str, list[list[int]]] = {}
    scored: dict[str, list[int]] = {}
    for batch in data.val_dataloader():
        for lane, video in enumerate(batch.video_ids):
            if not video:
                continue
            if batch.is_first[lane]:
                streams.setdefault(video, []).append([])
            shown = numbers_of(batch.frames[lane][batch.is_valid[lane]])
            assert batch.frame_indices[lane][batch.is_valid[lane]].tolist() == shown
            streams[video][-1] += shown
            assert batch.is_last[lane] == (shown[-1] + 4 >= source.lengths[int(video[-1])])
            at = batch.annotated[lane].nonzero().flatten()
            times = [round(time * FPS) for time in batch.timestamps[lane][at].tolist()]
            assert times == [shown[place] for place in at.tolist()]
            scored.setdefault(video, []).extend(times)
    lengths = {f"video_{n}": source.lengths[n] for n in (2, 3, 4)}
    assert streams == {video: [list(range(phase, n, 4)) for phase in range(4)] for video, n in lengths.items()}
    keyframes = {video.video_id: video.keyframes for video in source.videos("val")}
    every = {video: [round(frame.timestamp * FPS) for frame in frames] for video, frames in keyframes.items()}
    assert {video: sorted(frames) for video, frames in scored.items()} == every
    assert data.sampled_frames("val") == lengths


def test_prediction_has_one_stream_of_a_video_where_every_frame_is_evaluated(source, cache):
    data = opened(source, "predict", frame_stride=4, every_frame=True, cache=cache)
    shown = [batch.frame_indices[batch.is_valid] for batch in data.predict_dataloader()]
    assert not torch.cat(shown).remainder(4).any()


@pytest.mark.parametrize("world_size", [1, 2])
def test_videos_that_are_padded_to_one_size_are_streamed_together(tmp_path, monkeypatch, world_size):
    sizes = ((64, 64), (64, 96), (96, 64), (64, 96), (62, 90), (64, 64))
    source = NumberedVideos(tmp_path, lengths=(6, 30, 9, 9, 8, 7), training=1, sizes=sizes)
    source.prepare()
    padded = {number: tuple(-(-side // 32) * 32 for side in sizes[number]) for number in range(1, 6)}
    seen, steps = [], []
    for rank in range(world_size):
        data = opened(source, "validate", cache=None)
        monkeypatch.setattr(type(data), "rank", rank)
        monkeypatch.setattr(type(data), "world_size", world_size)
        batches = list(data.val_dataloader())
        steps.append([tuple(batch.frames.shape[-2:]) for batch in batches])
        for batch, size in zip(batches, steps[-1], strict=True):
            assert (batch.image_sizes > 0).all() and (batch.original_sizes > 0).all()
            assert {padded[int(video[-1])] for video in batch.video_ids if video} <= {size}
            for lane, video in enumerate(batch.video_ids):
                seen += [(video, index) for index in batch.frame_indices[lane][batch.is_valid[lane]].tolist()]
    assert all(step == steps[0] for step in steps)
    assert sorted(seen) == [(f"video_{n}", i) for n in range(1, 6) for i in range(0, source.lengths[n], 2)]
    # Three videos of the first size share two lanes, the only one of the second has one.
    assert steps[0] == sorted(steps[0], key=[(64, 96), (96, 64), (64, 64)].index)


def test_ranks_share_the_videos_and_keep_step(source, cache, monkeypatch):
    seen, steps = [], []
    for rank in range(2):
        data = opened(source, "validate", lanes=1, cache=cache)
        monkeypatch.setattr(type(data), "rank", rank)
        monkeypatch.setattr(type(data), "world_size", 2)
        batches = list(data.val_dataloader())
        steps.append(len(batches))
        seen += [(b.video_ids[0], float(t)) for b in batches for t in b.timestamps[0][b.is_valid[0]]]
    assert steps[0] == steps[1]
    assert len(seen) == len(set(seen)) == 17 + 9 + 3


def test_any_file_can_be_streamed_for_prediction(source, cache):
    files = [source.folder / "video_1.mp4", str(source.folder / "video_4.mp4")]
    data = opened(source, "predict", cache=cache, predict_videos=files, frame_stride=3)
    times = {"video_1": [], "video_4": [], "": []}
    for batch in data.predict_dataloader():
        assert not batch.annotated.any()
        for lane, video in enumerate(batch.video_ids):
            times[video] += (batch.timestamps[lane][batch.is_valid[lane]] * FPS).tolist()
    assert times["video_1"] == pytest.approx(range(0, 24, 3))
    assert times["video_4"] == pytest.approx([0, 3])


def test_files_to_predict_on_are_named_apart_and_none_twice(source, tmp_path):
    film = source.folder / "video_4.mp4"
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(film, tmp_path / folder / "film.mp4")
    shutil.copy(film, tmp_path / "a" / "Film.mp4")
    one, other, capital = (tmp_path / name for name in ("a/film.mp4", "b/film.mp4", "a/Film.mp4"))
    for files, names in (([one], ["film"]), ([one, other], [one, other]), ([one, capital], [one, capital])):
        data = opened(source, "predict", predict_videos=files)
        assert [video.video_id for video in data.videos("predict")] == list(map(str, names))
        assert data.input_files == tuple(files)
    with pytest.raises(UserError, match=r"predict_videos: the file '.*a/film\.mp4' is there 2 times"):
        opened(source, "predict", predict_videos=[one, other, one])


def test_prediction_leaves_the_test_split_alone(source, cache):
    data = opened(source, "predict", cache=cache, predict_videos=[source.folder / "video_1.mp4"])
    assert [video.video_id for video in data.videos("predict")] == ["video_1"]
    data.setup("test")
    assert {name for batch in data.test_dataloader() for name in batch.video_ids} - {""} == {
        "video_2",
        "video_3",
        "video_4",
    }
    assert {name for batch in data.predict_dataloader() for name in batch.video_ids} - {""} == {"video_1"}


class Recorder(LightningModule):
    """Remembers what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: dict[str, list] = {"fit": [], "val": [], "test": [], "predict": []}

    def training_step(self, batch, index):
        self.seen["fit"].append((self.current_epoch, batch.video_ids, batch.timestamps.tolist()))
        return self.weight * batch.frames.float().mean()

    def validation_step(self, batch, index):
        self.seen["val"].append(batch)

    def test_step(self, batch, index):
        self.seen["test"].append(batch)

    def predict_step(self, batch, index):
        self.seen["predict"].append(batch)
        return batch.timestamps

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("kind", ["stream", "clip"])
def test_lightning_drives_every_stage(source, cache, kind):
    if kind == "stream":
        data = stream_data(source, frame_stride=2, train_past_frames=4, lanes=2, chunk_frames=4, cache=cache)
    else:
        data = clip_data(source, num_frames=4, frame_stride=2, cache=cache)
    module = Recorder()
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(max_epochs=2, accelerator="cpu", num_sanity_val_steps=0, **quiet)
    trainer.fit(module, data)
    epochs = [[entry[1:] for entry in module.seen["fit"] if entry[0] == epoch] for epoch in range(2)]
    assert len(epochs[0]) == len(epochs[1]) == (13 + 8) // 8
    assert epochs[0] != epochs[1]
    trainer.test(module, data, verbose=False)
    assert len(module.seen["test"]) == len(module.seen["val"]) // 2 > 0
    trainer.predict(module, data)
    times = [t for batch in module.seen["predict"] for t in batch.timestamps.flatten().tolist()]
    valid = [batch.is_valid.sum() if kind == "stream" else len(batch.frames) for batch in module.seen["predict"]]
    assert sum(valid) == 17 + 9 + 3  # every second frame of 33, 17 and 5
    assert times


def test_what_cannot_work_is_refused(source):
    nonsense = {"frame_stride": 0, "train_past_frames": 0, "train_future_frames": -1, "lanes": 0, "chunk_frames": 0}
    nonsense |= {"batch_size": 0, "num_workers": -1, "samples_per_epoch": 0, "min_keyframe_boxes": -1}
    for name, value in nonsense.items():
        with pytest.raises(ValueError, match=rf"{name} must be at least \d, got {value}$"):
            stream_data(source, **{name: value})
    with pytest.raises(ValueError, match="loss_frames"):
        stream_data(source, train_past_frames=2, loss_frames=3)
