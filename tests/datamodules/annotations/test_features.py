import os

import numpy as np
import pytest

from datamodules.annotations.features import FeatureFolder, num_features, read_features
from datamodules.errors import UserError


@pytest.fixture
def values():
    return np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)


def test_a_feature_stands_for_the_middle_of_its_frames(tmp_path, values):
    np.save(tmp_path / "x.npy", values)
    array = FeatureFolder(tmp_path, stride_frames=4, window_frames=16, frame_rate=30).find("x", None, 25.0)
    assert array.first_seconds == 8 / 30 and array.step_seconds == 4 / 30  # the folder's frame rate comes first
    array = FeatureFolder(tmp_path, stride_frames=4, window_frames=16).find("x", None, 25.0)
    assert array.first_seconds == 8 / 25 and array.step_seconds == 4 / 25
    array = FeatureFolder(tmp_path, stride_frames=None).find("x", 10.0, None)
    assert array.first_seconds == 0.25 and array.step_seconds == 0.5


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("channels_first", [False, True])
@pytest.mark.parametrize("ending", ["npy", "npz"])
def test_part_of_an_array_is_read_whatever_its_form(tmp_path, values, ending, channels_first, dtype):
    stored = (values.T if channels_first else values).astype(dtype)
    save = np.save if ending == "npy" else np.savez_compressed
    save(tmp_path / f"v_x.{ending}", stored)
    array = FeatureFolder(tmp_path, frame_rate=30, channels_first=channels_first).find("x", None, None)
    assert num_features(array) == 20
    part = read_features(array, 3, 8)
    assert part.shape == (6, 5) and part.dtype == np.float32
    np.testing.assert_array_equal(part, values[3:8].T.astype(dtype).astype(np.float32))


def test_channels_of_two_folders_are_put_side_by_side_and_the_longer_is_cut(tmp_path, values):
    (tmp_path / "rgb").mkdir()
    (tmp_path / "flow").mkdir()
    np.save(tmp_path / "rgb" / "x.npy", values)
    np.save(tmp_path / "flow" / "x.npy", values[:18] * 2)
    folder = FeatureFolder(tmp_path / "rgb", tmp_path / "flow", frame_rate=30)
    array = folder.find("x", None, None)
    assert num_features(array) == 18
    np.testing.assert_array_equal(read_features(array, 16, 18), np.r_[values[16:18].T, 2 * values[16:18].T])
    np.save(tmp_path / "rgb" / "y.npy", values)
    assert folder.find("y", None, None) is None


def test_a_missing_video_is_none_and_a_missing_folder_an_error(tmp_path):
    assert FeatureFolder(tmp_path).find("x", None, 30.0) is None
    with pytest.raises(UserError, match="no such folder of features"):
        FeatureFolder(tmp_path / "absent").find("x", None, 30.0)


def test_what_is_no_array_of_features_is_named(tmp_path, values):
    folder = FeatureFolder(tmp_path, frame_rate=30)

    def reading(name):
        return num_features(folder.find(name, None, None))

    (tmp_path / "text.npy").write_text("features")
    with pytest.raises(UserError, match=r"text\.npy: not a readable numpy array"):
        reading("text")
    (tmp_path / "text.npz").write_text("features")
    (tmp_path / "text.npy").unlink()
    with pytest.raises(UserError, match=r"text\.npz: not a readable numpy array"):
        reading("text")
    np.save(tmp_path / "cube.npy", values[None])
    with pytest.raises(UserError, match=r"cube\.npy: is an array \(1, 20, 6\)"):
        reading("cube")
    np.save(tmp_path / "whole.npy", np.ones((3, 4), np.int64))
    with pytest.raises(UserError, match="of int64; features are"):
        reading("whole")
    np.save(tmp_path / "object.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="of object; features are"):
        reading("object")
    np.savez(tmp_path / "two.npz", rgb=values, flow=values)
    with pytest.raises(UserError, match="holds 2 arrays"):
        reading("two")


def test_what_times_need_must_be_known(tmp_path, values):
    np.save(tmp_path / "x.npy", values)
    with pytest.raises(UserError, match=r"set features\.frame_rate"):
        FeatureFolder(tmp_path).find("x", 10.0, None)
    with pytest.raises(UserError, match="need its duration"):
        FeatureFolder(tmp_path, stride_frames=None).find("x", None, 30.0)
    with pytest.raises(UserError, match="stride_frames"):
        FeatureFolder(tmp_path, stride_frames=0)
    with pytest.raises(UserError, match="frame_rate must be positive"):
        FeatureFolder(tmp_path, frame_rate=0)


@pytest.mark.parametrize("ending", ["npy", "npz"])
def test_a_file_that_is_cut_off_or_has_a_wrong_byte_is_refused_by_name_or_read_whole(tmp_path, values, ending):
    path = tmp_path / f"x.{ending}"
    (np.save if ending == "npy" else np.savez_compressed)(path, values)
    whole = path.read_bytes()
    damaged = [whole[:length] for length in range(0, len(whole), 13)]
    damaged += [whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :] for at in range(0, 120, 3)]
    refused = 0
    for number, contents in enumerate(damaged):
        path.write_bytes(contents)
        os.utime(path, (number, number))  # what was unpacked before is not this file's
        try:
            array = FeatureFolder(tmp_path, frame_rate=30).find("x", None, None)
            assert read_features(array, 0, num_features(array)).ndim == 2
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > len(damaged) * 0.7


def test_an_array_that_says_to_be_larger_than_its_file_is_refused_before_it_is_made(tmp_path, values):
    path = tmp_path / "x.npy"
    np.save(path, values)
    path.write_bytes(path.read_bytes().replace(b"(20, 6)", b"(99999999999, 6)").replace(b" " * 9 + b"\n", b"\n"))
    array = FeatureFolder(tmp_path, frame_rate=30).find("x", None, None)
    with pytest.raises(UserError, match=r"x\.npy: is cut off or damaged: \(99999999999, 6\) of float32 takes"):
        num_features(array)
