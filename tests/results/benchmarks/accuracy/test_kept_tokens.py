"""People's tokens, and the number of them that are kept, counted by hand."""

from types import SimpleNamespace

import torch

from results.benchmarks.accuracy.kept_tokens import kept_of, people_tokens, shares, validation_clips


def test_a_token_is_a_persons_if_the_box_overlaps_it():
    boxes = [torch.tensor([[16.0, 0.0, 33.0, 16.0]]), torch.zeros(0, 4), torch.tensor([[-5.0, 31.0, 3.0, 99.0]])]
    inside = people_tokens(boxes, (3, 4), 16).unflatten(1, (3, 4)).int().tolist()
    assert inside[0] == [[0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert inside[1] == [[0, 0, 0, 0]] * 3
    assert inside[2] == [[0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]


def test_the_clips_are_those_of_the_teacher():
    data = validation_clips(8)
    assert (data.num_frames, data.frame_stride, data.loader.num_workers, data.source.size) == (8, 2, 0, "full")


def test_kept_tokens_are_counted_by_what_is_there():
    people = torch.tensor([[True, True, True, False, False], [False, False, False, False, True]])
    kept, there = kept_of(torch.tensor([[0, 2, 4], [1, 2, 4]]), people)
    assert kept.tolist() == [3, 3] and there.tolist() == [4, 6]


def test_the_clips_that_were_looked_at_are_counted_in_whole_batches():
    encoded = SimpleNamespace(grid=(2, 2, 2), kept_by_layer=[torch.tensor([[0, 1], [0, 3]])])
    backbone = type("Backbone", (), {"patch_size": 16, "__call__": lambda self, clip: encoded})()
    boxes = [torch.tensor([[0.0, 0.0, 16.0, 16.0]])] * 2
    batch = SimpleNamespace(
        frames=torch.zeros(2, 4, 3, 32, 32, dtype=torch.uint8), image_sizes=torch.tensor([[32, 32]] * 2), boxes=boxes
    )
    data = SimpleNamespace(val_dataloader=lambda: [batch] * 3)
    found = [shares(SimpleNamespace(backbone=backbone), data, clips) for clips in (3, 99)]
    assert [clips for _, _, clips in found] == [4, 6]
