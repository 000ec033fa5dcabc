"""Streams composed of trimmed clips: whole clips in a drawn order, cuts and segments exact to the frame."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from datamodules import annotations
from datamodules.annotations import composed
from datamodules.annotations.composed import FRAMES_PER_SECOND, ComposedJHMDB, draw_sizes
from datamodules.errors import UserError
from datamodules.flow.store import FlowSettings
from datamodules.frames.store import DecodedFrames, FrameScale
from tests.datamodules.miniature import numbered_frames, read_numbers
from tests.datamodules.moving import moving_frames
from tests.datamodules.written_videos import write_video
from tests.flat_data import segment_data

CLASSES = ("jump", "sit", "wave")
APART = 16
"""Clip n is numbered from 16 n on."""
TRAIN, VAL = range(14), range(14, 21)


def name_of(clip: int) -> str:
    return f"clip_{clip:02d}"


def label_of(clip: int) -> str:
    return CLASSES[clip % 3]


def length_of(clip: int) -> int:
    return 4 + clip % 5


def write_clips(folder: Path, frames_of: Callable[[int], Iterator[np.ndarray]], train=TRAIN, val=VAL) -> Path:
    """Write clips as JHMDB has them, and ``gt.pkl``; returns the folder."""
    names = {clip: f"{label_of(clip)}/{name_of(clip)}" for clip in (*train, *val)}
    for clip, name in names.items():
        write_video(folder / "videos" / f"{name}.mp4", frames_of(clip), fps=30)
    tubes = {
        names[clip]: {
            clip % 3: [np.asarray([(frame + 1, 9, 9, 60, 60) for frame in range(length_of(clip))], np.float32)]
        }
        for clip in names
    }
    contents = {
        "labels": list(CLASSES),
        "gttubes": tubes,
        "nframes": {names[clip]: length_of(clip) for clip in names},
        "resolution": dict.fromkeys(names.values(), (96, 128)),
        "train_videos": [[names[clip] for clip in train]],
        "test_videos": [[names[clip] for clip in val]],
    }
    (folder / "gt.pkl").write_bytes(pickle.dumps(contents, protocol=0))
    return folder


@pytest.fixture(scope="module")
def numbered(tmp_path_factory) -> Path:
    frames = list(numbered_frames(APART * 21))
    return write_clips(
        tmp_path_factory.mktemp("numbered"), lambda clip: iter(frames[APART * clip :][: length_of(clip)])
    )


def source_of(folder: Path, root: Path, **settings) -> ComposedJHMDB:
    settings = {"background": ["sit"], "clips": (3, 5)} | settings
    return ComposedJHMDB(folder / "videos", folder / "gt.pkl", root, **settings)


@pytest.fixture(scope="module")
def source(numbered, tmp_path_factory) -> ComposedJHMDB:
    source = source_of(numbered, tmp_path_factory.mktemp("composed"))
    source.prepare()
    return source


def clips_of(source: ComposedJHMDB, split: str) -> list[list[int]]:
    """The clips of each stream, as its pixels have them; checks that each of them is there whole."""
    store, streams = DecodedFrames(FrameScale(None)), []
    for video in source.videos(split):
        numbers = np.asarray(read_numbers(store.get(video.media, np.arange(len(store.facts(video.media).times)))))
        clips = [clip for clip, offset in zip(numbers // APART, numbers % APART, strict=True) if offset == 0]
        whole = [APART * clip + frame for clip in clips for frame in range(length_of(clip))]
        assert numbers.tolist() == whole
        streams.append(list(map(int, clips)))
    return streams


def joined(streams: list[list[int]]) -> list[int]:
    return list(chain.from_iterable(streams))


# --- streams ---------------------------------------------------------------------------------------------------------


def test_every_clip_of_a_part_of_the_split_is_in_one_of_its_streams_whole(source):
    train, val = clips_of(source, "train"), clips_of(source, "val")
    assert sorted(joined(train)) == list(TRAIN) and sorted(joined(val)) == list(VAL)
    assert all(3 <= len(clips) <= 5 for clips in (*train, *val)) and joined(train) != list(TRAIN)
    assert clips_of(source, "test") == val
    names = [video.video_id for split in ("train", "val") for video in source.videos(split)]
    assert len(set(names)) == len(names) and all(name.startswith("composed_") for name in names)


@pytest.mark.parametrize("split", ["train", "val"])
def test_cuts_and_segments_are_exact_to_the_frame(source, split):
    for video, clips in zip(source.videos(split), clips_of(source, split), strict=True):
        ends = np.cumsum([length_of(clip) for clip in clips])
        starts = ends - [length_of(clip) for clip in clips]
        assert video.cuts.tolist() == starts[1:].tolist()
        acting = [place for place, clip in enumerate(clips) if label_of(clip) != "sit"]
        np.testing.assert_allclose(
            video.segments * FRAMES_PER_SECOND, np.stack([starts, ends], axis=1)[acting], atol=1e-9
        )
        assert [source.class_names()[label] for label in video.labels] == [label_of(clips[at]) for at in acting]
        assert video.duration == pytest.approx(ends[-1] / FRAMES_PER_SECOND)
        times = DecodedFrames(FrameScale(None)).facts(video.media).times
        np.testing.assert_allclose(times, np.arange(ends[-1]) / FRAMES_PER_SECOND, atol=1e-4)


def test_background_is_a_matter_of_labels_alone(source, numbered):
    root = source.folder.parent
    other = source_of(numbered, root, background=["wave", "jump"])
    other.prepare()
    assert source.class_names() == ("jump", "wave") and other.class_names() == ("sit",)
    for ours, theirs in zip(source.videos("train"), other.videos("train"), strict=True):
        assert ours.media == theirs.media and len(ours.segments) + len(theirs.segments) == len(ours.cuts) + 1
    assert source_of(numbered, root, background=[]).class_names() == CLASSES


def test_a_seed_gives_the_same_streams_again_and_another_one_others(source, numbered, tmp_path):
    again, other = source_of(numbered, tmp_path / "again"), source_of(numbered, tmp_path / "other", seed=1)
    for each in (again, other):
        each.prepare()
    for split in ("train", "val"):
        assert clips_of(again, split) == clips_of(source, split) != clips_of(other, split)
    for ours, theirs in zip(source.videos("val"), again.videos("val"), strict=True):
        assert ours.media.read_bytes() == theirs.media.read_bytes()


def test_a_result_is_said_to_be_of_composed_streams(source):
    assert source.evaluated_on() == "JHMDB split 1, 2 streams composed of 7 test clips"
    record = json.loads((source.folder / "composed.json").read_text())
    assert record["about"].startswith("Composed:") and "Composed" in (annotations.composed.__doc__ or "")


@pytest.mark.parametrize(("least", "most"), [(6, 12), (3, 5), (1, 1), (4, 4)])
def test_sizes_add_up_and_stay_within_their_bounds(least, most):
    rng, possible = np.random.default_rng(0), 0
    for count in range(1, 100):
        if -(-count // most) > count // least:
            with pytest.raises(UserError, match=f"{count} clips cannot be cut together into streams of {least}"):
                draw_sizes(rng, count, least, most)
            continue
        possible += 1
        sizes = draw_sizes(rng, count, least, most)
        assert sum(sizes) == count and least <= min(sizes) and max(sizes) <= most
    assert possible >= 24
    assert len(set(draw_sizes(rng, 660, 6, 12))) == 7


# --- flow ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def moving(tmp_path_factory) -> Path:
    """Clips of textures, all moving by 4 pixels to the right and 2 up."""
    return write_clips(
        tmp_path_factory.mktemp("moving"),
        lambda clip: iter(moving_frames(length_of(clip), (4, -2), height=96, width=128, seed=clip)),
        range(6),
        range(6, 10),
    )


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("frame_rate", [None, 15.0])
def test_no_flow_leads_across_a_cut_and_all_other_flow_is_there(moving, tmp_path, frame_rate, cached):
    source = source_of(moving, tmp_path / "composed")
    flow = FlowSettings("dis", tmp_path / "flow" if cached else None)
    small = {"frame_rate": frame_rate, "short_side": 48, "batch_size": 1, "flow": flow}
    data = segment_data(source, window_steps=7, eval_overlap=0.5, **small)
    data.prepare_data()
    data.setup("fit")
    masked = 0
    for batch, request in zip(data.val_dataloader(), data.val_dataloader().dataset.windows, strict=True):
        video = data.videos("val")[request.video]
        for step in range(int(batch.mask.sum())):
            at = request.start + step
            shown = video.frames[max(at - 1, 0) : at + 1]
            crosses = any(shown[0] < cut <= shown[-1] for cut in video.video.cuts)
            masked += crosses
            still = not batch.flow[0, step].any()
            assert still == (crosses or at == 0)
            if not still:  # at half the size, and so many frames apart
                apart = int(shown[1] - shown[0])
                median = np.median(batch.flow[0, step, :, :48, :64], axis=(1, 2))
                np.testing.assert_allclose(median, [2 * apart, -apart], atol=0.4)
    assert masked >= 4


# --- files and mistakes ----------------------------------------------------------------------------------------------


def test_interrupted_it_begins_anew_and_complete_it_is_left_alone(numbered, tmp_path, monkeypatch):
    source, write, written = source_of(numbered, tmp_path), composed._write, []

    def break_off(path, clips):
        written.append(path)
        if len(written) == 3:
            raise KeyboardInterrupt
        write(path, clips)

    monkeypatch.setattr(composed, "_write", break_off)
    with pytest.raises(KeyboardInterrupt):
        source.prepare()
    with pytest.raises(UserError, match=r"holds no composed streams yet; call prepare\(\) first"):
        source.videos("train")
    source.prepare()
    assert sorted(joined(clips_of(source, "train"))) == list(TRAIN)
    count = len(written)
    source.prepare()
    assert len(written) == count
    source.videos("val")[0].media.unlink()
    source.prepare()
    assert len(written) > count and len(clips_of(source, "val")) == 2


def test_streams_of_another_recipe_and_other_files_are_refused(source, numbered, tmp_path):
    with pytest.raises(UserError, match=f"was made as .*; delete {source.folder} or choose another root"):
        source_of(numbered, source.folder.parent, seed=1).prepare()
    (tmp_path / "split_1").mkdir()
    (tmp_path / "split_1" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds files that are no composed streams; choose another root"):
        source_of(numbered, tmp_path).prepare()


def test_streams_of_other_clips_than_there_are_now_are_refused(numbered, tmp_path):
    few, every = tmp_path / "few", pickle.loads((numbered / "gt.pkl").read_bytes())
    few.mkdir()
    (few / "videos").symlink_to(numbered / "videos")
    contents = every | {"train_videos": [every["train_videos"][0][:-1]]}
    (few / "gt.pkl").write_bytes(pickle.dumps(contents, protocol=0))
    source_of(few, tmp_path / "root").prepare()
    with pytest.raises(UserError, match=r"was made of 13 train clips, and 14 are there, 13 of them the same; delete"):
        source_of(numbered, tmp_path / "root").prepare()
    source_of(few, tmp_path / "root").prepare()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"background": ["stand"]}, r"has no class 'stand' to be background; choose among jump, sit, wave"),
        ({"background": list(CLASSES)}, r"background: all classes are background; leave some out"),
        ({"clips": (9, 12)}, r"14 train clips cannot be cut together into streams of 9 to 12; set other clips"),
        ({"clips": (5, 3)}, r"clips are the fewest and the most of a stream, got \[5, 3\]"),
        ({"split": 2}, r"has 1 splits, asked for split 2"),
        ({"seed": -1}, r"seed must not be negative, got -1"),
    ],
)
def test_a_mistake_is_named_with_the_way_out_and_nothing_is_written(numbered, tmp_path, settings, said):
    with pytest.raises(UserError, match=said):
        source_of(numbered, tmp_path / "root", **settings).prepare()
    assert not list((tmp_path).rglob("*.mp4"))


def test_missing_videos_are_named_and_no_video_at_all_is_refused(numbered, tmp_path):
    few = tmp_path / "few"
    for clip in (*TRAIN[:-2], *VAL):
        path = few / "videos" / label_of(clip) / f"{name_of(clip)}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(numbered / "videos" / label_of(clip) / path.name)
    (few / "gt.pkl").symlink_to(numbered / "gt.pkl")
    source = source_of(few, tmp_path / "root")
    with pytest.warns(UserWarning, match=r"2 of 14 train videos are not in .*sit/clip_13"):
        source.prepare()
    assert sorted(joined(clips_of(source, "train"))) == list(TRAIN[:-2])
    with pytest.raises(UserError, match="no such folder"):
        ComposedJHMDB(tmp_path / "absent", few / "gt.pkl", tmp_path / "none", background=[]).prepare()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds none of the 14 train videos"):
        ComposedJHMDB(tmp_path / "empty", few / "gt.pkl", tmp_path / "none", background=[]).prepare()


def test_clips_of_two_sizes_are_refused(tmp_path):
    folder = write_clips(
        tmp_path, lambda clip: numbered_frames(length_of(clip), 96, 128 if clip else 144), range(3), range(3, 6)
    )
    with pytest.raises(UserError, match=r"is of \d+x96 pixels, .* of \d+x96; bring all videos at one size"):
        source_of(folder, tmp_path / "root").prepare()
