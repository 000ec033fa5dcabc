"""Frames of a stream that outputs are about."""

import pytest
import torch

from datamodules.batches import StreamBatch
from datamodules.sampling.indexing import StreamChunk, stream_chunks
from lightning_modules.evaluation.predictions import StreamAnswers
from lightning_modules.networks.detection.outputs import ScoredBoxes

LENGTHS = (13, 8, 1, 10, 4)
"""Of the videos; one and two are shorter than a look-ahead, two end with a chunk of four frames."""


def chunks(lanes: int, chunk_frames: int, further: int | None = None):
    """Videos whose every frame is its index, and answers that say video and frame they are given at.

    ``further`` is how many answers are given after a video's last chunk; None where nobody knows that it is the last.
    """
    for step in stream_chunks([[length] for length in LENGTHS], lanes, chunk_frames, 0, 1):
        shape = len(step), chunk_frames
        valid = torch.tensor([chunk.valid for chunk in step])
        starts = torch.tensor([chunk.start if chunk.valid else 0 for chunk in step])
        indices = starts[:, None] + torch.arange(chunk_frames)
        batch = StreamBatch(
            frames=indices[:, :, None, None, None].expand(*shape, 3, 2, 2).to(torch.uint8),
            image_sizes=torch.full((len(step), 2), 2),
            is_first=torch.tensor([chunk.valid > 0 and chunk.start == 0 for chunk in step]),
            is_valid=torch.arange(chunk_frames) < valid[:, None],
            is_last=torch.tensor([further is not None and is_last(chunk) for chunk in step]),
            annotated=indices % 2 == 0,
            boxes=tuple(torch.full((1, 4), float(index)) for index in indices.flatten()),
            labels=(torch.zeros(1, 3),) * indices.numel(),
            video_ids=tuple(f"video {chunk.video}" if chunk.valid else "" for chunk in step),
            timestamps=indices / 10,
            original_sizes=torch.full((len(step), 2), 4),
            frame_indices=indices,
        )
        said = []
        for chunk, start, ends in zip(step, starts.tolist(), batch.is_last.tolist(), strict=True):
            times = range(start, start + chunk_frames + (further if ends else 0))
            tags = [torch.tensor([[float(chunk.video), float(time)]]) for time in times]
            said.append([ScoredBoxes(torch.zeros(1, 4), tag, torch.ones(1)) for tag in tags])
        yield batch, said


def is_last(chunk: StreamChunk) -> bool:
    return chunk.valid > 0 and chunk.start + chunk.valid == LENGTHS[chunk.video]


@pytest.mark.parametrize("end_is_known", [True, False])
@pytest.mark.parametrize("look_ahead", [0, 1, 3, 20])
@pytest.mark.parametrize(("lanes", "chunk_frames"), [(1, 1), (2, 4), (3, 5), (5, 40)])
def test_every_frame_gets_what_was_said_so_much_later_or_at_the_end(look_ahead, lanes, chunk_frames, end_is_known):
    answers, got = StreamAnswers(look_ahead), []
    for batch, said in chunks(lanes, chunk_frames, further=look_ahead if end_is_known else None):
        got += answers.add(batch, said)
    got += answers.finish()
    assert answers.finish() == []
    frames = [(answer.frame.video_id, answer.frame.index) for answer in got]
    assert sorted(frames) == sorted((f"video {v}", i) for v, length in enumerate(LENGTHS) for i in range(length))
    for video, length in enumerate(LENGTHS):
        own = [answer for answer in got if answer.frame.video_id == f"video {video}"]
        assert [answer.frame.index for answer in own] == list(range(length))  # in the order of time
        for index, (frame, found) in enumerate(own):
            said_at = index + look_ahead if end_is_known else min(index + look_ahead, length - 1)
            assert found.scores.tolist() == [[video, said_at]]
            # What belongs to the frame came with it.
            assert frame.is_first == (index == 0) and frame.annotated == (index % 2 == 0)
            assert frame.boxes[0, 0] == index and frame.pixels.unique().tolist() == [index]
            assert frame.timestamp == pytest.approx(index / 10) and frame.picture is None


def test_without_a_look_ahead_nothing_waits():
    answers = StreamAnswers(0)
    for batch, said in chunks(3, 5):
        assert len(answers.add(batch, said)) == int(batch.is_valid.sum())
    assert answers.finish() == []
