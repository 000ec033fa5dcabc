"""Methods of optical flow find a known motion, and look at nothing but the two frames."""

from __future__ import annotations

import hashlib
import pickle

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from datamodules.errors import UserError
from datamodules.flow.methods import DisFlow, RaftFlow, Tvl1Flow, _raft_padding, flow_method
from tests.datamodules.moving import moving_frames

needs_contrib = pytest.mark.skipif(not hasattr(cv2, "optflow"), reason="needs opencv-contrib-python-headless")


@pytest.mark.parametrize(
    ("method", "tolerance"),
    [
        (DisFlow(), 0.1),
        (DisFlow("fast"), 0.3),
        (DisFlow("ultrafast"), 0.3),
        pytest.param(Tvl1Flow(), 0.1, marks=needs_contrib),
    ],
    ids=lambda value: value.identity() if hasattr(value, "identity") else "",
)
def test_a_moving_texture_has_the_flow_it_moves_with(method, tolerance):
    frames = moving_frames(4, (3, -2), height=96, width=128)
    flow = method.between(frames)
    assert flow.shape == (3, 2, 96, 128) and flow.dtype == np.float32
    inside = np.abs(flow[:, :, 16:-16, 16:-16] - np.asarray([3, -2], np.float32)[:, None, None])
    assert np.median(inside) < tolerance and np.quantile(inside, 0.95) < 4 * tolerance


def test_a_vector_points_from_the_earlier_pixel_to_the_later():
    flow = DisFlow().between(moving_frames(2, (4, 1)))[0]
    earlier, later = moving_frames(2, (4, 1)).astype(np.float32).mean(axis=3)
    y, x = np.mgrid[20:76, 20:76].astype(np.float32)
    found = cv2.remap(later, x + flow[0, 20:76, 20:76], y + flow[1, 20:76, 20:76], cv2.INTER_LINEAR)
    assert np.abs(found - earlier[20:76, 20:76]).mean() < 0.1 * np.abs(later - earlier)[20:76, 20:76].mean()


def test_flow_of_steps_is_that_of_pairs_and_begins_with_zero():
    frames, method = moving_frames(6, (1, 2)), DisFlow()
    whole = method.of_steps(frames)
    assert whole.shape == (6, 2, 96, 96) and not whole[0].any()
    for step in range(1, 6):
        np.testing.assert_array_equal(method.between(frames[step - 1 : step + 1])[0], whole[step])
    # As frames arrive, one or some at a time.
    pieces = [method.of_steps(frames[:1])]
    pieces += [method.of_steps(frames[step : step + 1], frames[step - 1]) for step in (1, 2)]
    np.testing.assert_array_equal(np.concatenate([*pieces, method.of_steps(frames[3:], frames[2])]), whole)


def test_the_number_of_threads_makes_no_difference_and_is_left_alone():
    frames = moving_frames(3, (2, 1), height=160, width=160)
    before, found = cv2.getNumThreads(), []
    try:
        for threads in (1, 4):
            cv2.setNumThreads(threads)
            found.append(DisFlow().between(frames))
            assert cv2.getNumThreads() == threads
    finally:
        cv2.setNumThreads(before)
    np.testing.assert_array_equal(*found)


def test_a_still_picture_has_no_flow():
    assert not DisFlow().between(np.repeat(moving_frames(1, (0, 0)), 3, axis=0)).any()


def test_without_the_contrib_modules_the_command_that_brings_them_is_told(monkeypatch):
    monkeypatch.delattr(cv2, "optflow", raising=False)
    with pytest.raises(ModuleNotFoundError, match="pip install opencv-contrib-python-headless; or use DisFlow"):
        Tvl1Flow().prepare()


# --- RAFT ------------------------------------------------------------------------------------------------------------


class Recorded(nn.Module):
    """Stands where RAFT stands: its last update gives each pixel its red value, of the earlier and the later frame."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes, self.updates = [], set()

    def forward(self, earlier, later, num_flow_updates):
        assert earlier.min() >= -1 and later.max() <= 1
        self.sizes.append(tuple(earlier.shape))
        self.updates.add(num_flow_updates)
        return [torch.full_like(earlier[:, :2], 99.0), torch.stack([earlier[:, 0], later[:, 0]], dim=1)]


@pytest.mark.parametrize(("height", "width"), [(96, 128), (131, 170), (136, 200)])
def test_raft_sees_padded_batches_and_its_flow_is_cut_back(height, width):
    method = RaftFlow(num_updates=5, batch_size=3)
    method._network = Recorded()
    frames = np.random.default_rng(0).integers(0, 256, (8, height, width, 3)).astype(np.uint8)
    flow = method.between(frames)
    red = frames[..., 0].astype(np.float32) / 127.5 - 1
    np.testing.assert_allclose(flow, np.stack([red[:-1], red[1:]], axis=1), atol=1e-6)
    padded = [max(128, -(-side // 8) * 8) for side in (height, width)]
    assert method._network.sizes == [(count, 3, *padded) for count in (3, 3, 1)]
    assert method._network.updates == {5}
    assert method.of_steps(frames[:1]).shape == (1, 2, height, width)


def test_raft_pads_both_sides_by_as_much():
    assert [_raft_padding(length) for length in (128, 131, 96, 129)] == [(0, 0), (2, 3), (16, 16), (3, 4)]


def test_raft_reads_weights_from_a_file_and_is_known_by_them(tmp_path):
    from torchvision.models.optical_flow import raft_small

    torch.manual_seed(0)
    state, file = raft_small(weights=None).state_dict(), tmp_path / "raft.pth"
    torch.save(state, file)
    method = RaftFlow("small", file, num_updates=1)
    method.prepare()
    assert not method._network.training and not any(p.requires_grad for p in method._network.parameters())
    torch.testing.assert_close(method._network.state_dict(), state)
    assert hashlib.sha256(file.read_bytes()).hexdigest() in method.identity()
    assert len(pickle.dumps(method)) < 10_000 and pickle.loads(pickle.dumps(method))._network is None
    flow = method.between(moving_frames(3, (1, 0), height=40, width=72))
    assert flow.shape == (2, 2, 40, 72) and np.isfinite(flow).all()


def test_raft_without_weights_says_which_there_are(monkeypatch):
    with pytest.raises(UserError, match="neither a file nor one of C_T_V1, C_T_V2"):
        RaftFlow("small", "absent.pth").prepare()
    assert RaftFlow("small").identity() != RaftFlow("large").identity()

    def offline(*args, **kwargs):
        from urllib.error import URLError

        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(UserError, match=r"cannot download https://.*no route to host.*name it as weights"):
        RaftFlow("small").prepare()


# --- names -----------------------------------------------------------------------------------------------------------


def test_methods_have_names():
    for name, kind in (("dis", DisFlow), ("tvl1", Tvl1Flow), ("raft", RaftFlow)):
        assert type(flow_method(name)) is kind and kind.name == name
    method = DisFlow("fast")
    assert flow_method(method) is method
    with pytest.raises(ValueError, match="no optical flow is called 'farneback'; choose one of dis, tvl1, raft"):
        flow_method("farneback")
    with pytest.raises(ValueError, match="preset must be one of"):
        DisFlow("slow")
    assert len({m.identity() for m in (DisFlow(), DisFlow("fast"), Tvl1Flow(), Tvl1Flow(epsilon=0.05))}) == 4
