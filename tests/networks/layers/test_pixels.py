"""From uint8 pixels to network input."""

import torch

from lightning_modules.networks.layers.pixels import gather_clips, normalise_frames, pad_clips


def test_pixels_are_scaled_as_evad_does():
    frames = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 3, 1, 1)
    expected = torch.tensor([-0.45, 0.2 - 0.45, 0.55]) / 0.225
    torch.testing.assert_close(normalise_frames(frames).flatten(), expected)
    assert normalise_frames(frames, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_padding_is_zero_after_normalising_whatever_it_held():
    frames = torch.randint(0, 256, (2, 3, 3, 4, 6), dtype=torch.uint8)
    sizes = torch.tensor([[4, 5], [2, 6]])
    ours, whole = normalise_frames(frames, sizes), normalise_frames(frames)
    for item, (height, width) in enumerate(sizes.tolist()):
        assert torch.equal(ours[item, ..., :height, :width], whole[item, ..., :height, :width])
        assert not ours[item, ..., height:, :].any() and not ours[item, ..., width:].any()


def test_clips_are_padded_right_and_below_to_the_largest_rounded_up():
    clips = [torch.randn(3, 4, 50, 90), torch.randn(3, 4, 64, 33)]
    batch, sizes = pad_clips(clips, 32)
    assert batch.shape == (2, 3, 4, 64, 96) and sizes.tolist() == [[50, 90], [64, 33]]
    for padded, clip in zip(batch, clips, strict=True):
        height, width = clip.shape[-2:]
        assert torch.equal(padded[..., :height, :width], clip)
        assert not padded[..., height:, :].any() and not padded[..., width:].any()


def test_normalising_a_padded_batch_equals_padding_normalised_clips():
    frames = [torch.randint(0, 256, (4, 3, *size), dtype=torch.uint8) for size in ((20, 30), (32, 17))]
    padded, sizes = pad_clips([clip.transpose(0, 1) for clip in frames], 16)
    ours = normalise_frames(padded.transpose(1, 2), sizes)
    theirs, _ = pad_clips([normalise_frames(clip[None])[0].transpose(0, 1) for clip in frames], 16)
    torch.testing.assert_close(ours, theirs.transpose(1, 2), rtol=0, atol=0)


def test_gathered_clips_are_the_frames_that_they_name():
    frames, places = torch.randn(2, 5, 3, 4, 6), torch.tensor([[0, 1, 2], [2, 3, 3]])
    clips = gather_clips(frames, places)
    assert clips.shape == (4, 3, 3, 4, 6) and clips.is_contiguous()
    for sample in range(2):
        for number, wanted in enumerate(places.tolist()):
            assert torch.equal(clips[2 * sample + number], frames[sample, wanted].transpose(0, 1))
