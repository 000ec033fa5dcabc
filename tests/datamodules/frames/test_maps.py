"""Maps in the place of frames, against means over cells of the frames that the decoder gives."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from datamodules.batches import MapFacts
from datamodules.errors import UserError
from datamodules.frames.maps import FeatureMaps
from datamodules.frames.store import DecodedFrames, FrameScale
from tests.datamodules.miniature import NumberedVideos, numbered_frames
from tests.datamodules.written_videos import write_video
from tests.flat_data import clip_data, segment_data, stream_data

STEM = MapFacts("0123456789abcdef", "means", 3, 16)
SCALE = FrameScale(48)
"""Frames of 48 x 64, padded to 64 x 64: maps of 4 x 4."""


def means(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A stem of three channels and stride 16."""
    assert pixels.dtype == np.uint8 and not pixels[..., size[0] :, :].any()
    height, width = (side // 16 for side in pixels.shape[-2:])
    return pixels.reshape(-1, 3, height, 16, width, 16).astype(np.float32).mean((3, 5))


def expected(frames: np.ndarray) -> np.ndarray:
    """Frames (T, 48, 64, 3) -> (T, 3, 4, 4), the last row those of the padding."""
    cells = frames.astype(np.float64).reshape(-1, 3, 16, 4, 16, 3).mean((2, 4))
    return np.pad(cells, [(0, 0), (0, 1), (0, 0), (0, 0)]).transpose(0, 3, 1, 2)


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "a!b [c].mp4"
    write_video(path, numbered_frames(40), fps=10)
    return path


def test_maps_are_those_of_frames_and_of_their_mirror_images(tmp_path, video):
    maps, wanted = FeatureMaps(tmp_path / "maps", SCALE), [39, 0, 17, 17]
    assert maps.build([video, video], STEM, means) == 1
    frames = DecodedFrames(SCALE).get(video, wanted)
    again = FeatureMaps(tmp_path / "maps", SCALE)
    # float16 holds numbers up to 255 to an eighth.
    np.testing.assert_allclose(again.get(video, wanted), expected(frames), rtol=0, atol=0.1)
    np.testing.assert_allclose(again.get(video, wanted, mirrored=True), expected(frames[:, :, ::-1]), rtol=0, atol=0.1)
    assert again.get(video, wanted).dtype == np.float16
    ours, theirs = again.facts(video), DecodedFrames(SCALE).facts(video)
    assert ours.size == theirs.size == (48, 64) and ours.original_size == theirs.original_size
    np.testing.assert_array_equal(ours.times, theirs.times)


def test_a_file_of_maps_is_safetensors(tmp_path, video):
    maps = FeatureMaps(tmp_path / "maps", SCALE)
    maps.build([video], STEM, means)
    (file,) = (tmp_path / "maps").glob("*.safetensors")
    stored = load_file(file)["maps"]
    assert stored.shape == (40, 2, 3, 4, 4)
    np.testing.assert_array_equal(stored[:, 1], maps.get(video, range(40), mirrored=True))


def test_an_interrupted_build_goes_on_where_it_was(tmp_path):
    videos = [tmp_path / f"{name}.mp4" for name in "abc"]
    for path in videos:
        write_video(path, numbered_frames(4), fps=10)
    done: list[int] = []

    def stopping(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(len(pixels))
        return means(pixels, size)

    maps = FeatureMaps(tmp_path / "maps", SCALE)
    with pytest.raises(KeyboardInterrupt):
        maps.build(videos, STEM, stopping)
    assert len(list((tmp_path / "maps").iterdir())) == 3  # two videos and maps.json, nothing unfinished
    assert FeatureMaps(tmp_path / "maps", SCALE).build(videos, STEM, means) == 1
    assert FeatureMaps(tmp_path / "maps", SCALE).build(videos, STEM, None) == 0


@pytest.mark.parametrize("harm", ["cut", "header", "changed video"])
def test_maps_that_are_damaged_or_of_another_state_of_the_video_are_made_again(tmp_path, video, harm):
    maps = FeatureMaps(tmp_path / "maps", SCALE)
    maps.build([video], STEM, means)
    (file,) = (tmp_path / "maps").glob("*.safetensors")
    if harm == "cut":
        file.write_bytes(file.read_bytes()[:-2])
    elif harm == "header":
        file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:])
    else:
        write_video(video, numbered_frames(7), fps=10)
    again = FeatureMaps(tmp_path / "maps", SCALE)
    with pytest.raises(UserError, match=r"a!b.*has no whole maps of its present state in .*python main.py maps"):
        again.facts(video)
    assert again.build([video], STEM, means) == 1
    assert len(again.facts(video).times) == (7 if harm == "changed video" else 40)


def test_maps_stay_those_of_a_copy_with_other_times(tmp_path, video):
    FeatureMaps(tmp_path / "maps", SCALE).build([video], STEM, means)
    os.utime(video, (1, 1))
    assert FeatureMaps(tmp_path / "maps", SCALE).build([video], STEM, None) == 0


def test_maps_of_another_stem_or_size_are_refused(tmp_path, video):
    with pytest.raises(UserError, match="has no maps; make them: python main"):
        FeatureMaps(tmp_path / "maps", SCALE).facts(video)
    FeatureMaps(tmp_path / "maps", SCALE).build([video], STEM, means)
    with pytest.raises(UserError, match=r"another stem, means \(0123456789abcdef\), not those of other \(9\)"):
        FeatureMaps(tmp_path / "maps", SCALE).build([video], MapFacts("9", "other", 3, 16), means)
    with pytest.raises(UserError, match=r"another size \(short_side 48.* than is wanted \(short_side 60"):
        FeatureMaps(tmp_path / "maps", FrameScale(60)).facts(video)
    with pytest.raises(UserError, match="no numbers that float16 holds"):
        FeatureMaps(tmp_path / "more", SCALE).build([video], STEM, lambda pixels, size: means(pixels, size) * 1e4)


@pytest.fixture
def source(tmp_path):
    source = NumberedVideos(tmp_path / "videos")
    source.prepare()
    videos = [video.path for split in ("train", "val") for video in source.videos(split)]
    FeatureMaps(tmp_path / "maps", SCALE).build(videos, STEM, means)
    return source


def opened(make, source, folder, **settings):
    frames = {"short_side": 48, "cache": None, "maps": folder and str(folder)}
    data = make(source, frame_stride=2, batch_size=4, **frames, **settings)
    data.setup("fit")
    return data


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["clip", "stream"])
def test_training_batches_of_maps_are_those_of_pixels(source, tmp_path, flip, kind):
    make, window = (clip_data, {"num_frames": 4}) if kind == "clip" else (stream_data, {"train_past_frames": 4})
    batches = [
        next(iter(opened(make, source, folder, horizontal_flip=flip, seed=1, **window).train_dataloader()))
        for folder in (tmp_path / "maps", None)
    ]
    maps, pixels = batches
    assert maps.frames.dtype == torch.float16 and maps.frames.shape == (*pixels.frames.shape[:2], 3, 4, 4)
    of_pixels = means(pixels.frames.flatten(0, 1).numpy(), (64, 64))
    np.testing.assert_allclose(maps.frames.flatten(0, 1).numpy(), of_pixels, rtol=0, atol=0.1)
    assert maps.video_ids == pixels.video_ids and torch.equal(maps.image_sizes, pixels.image_sizes)
    for ours, theirs in zip(maps.boxes, pixels.boxes, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert all(torch.equal(*pair) for pair in zip(maps.labels, pixels.labels, strict=True))


def test_streams_of_maps_are_those_of_pixels(source, tmp_path):
    streams = [
        list(opened(stream_data, source, folder, lanes=2, chunk_frames=3).val_dataloader())
        for folder in (tmp_path / "maps", None)
    ]
    for maps, pixels in zip(*streams, strict=True):
        of_pixels = means(pixels.frames.flatten(0, 1).numpy(), (64, 64))
        np.testing.assert_allclose(maps.frames.flatten(0, 1).numpy(), of_pixels, rtol=0, atol=0.1)
        assert torch.equal(maps.image_sizes, pixels.image_sizes) and torch.equal(maps.is_valid, pixels.is_valid)


def test_what_cannot_be_done_to_maps_is_refused(source, tmp_path):
    for change in ({"scale_range": (0.9, 1.1)}, {"brightness": 0.1}, {"saturation": 0.1}):
        with pytest.raises(UserError, match=r"data.augmentation: .*mirror images alone"):
            clip_data(source, maps=str(tmp_path), **change)
    with pytest.raises(UserError, match="temporal detectors read no maps"):
        segment_data(source, maps=str(tmp_path))
