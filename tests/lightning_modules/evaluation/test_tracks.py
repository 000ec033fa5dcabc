"""Track ids on a lane: one number a person of a video, whatever happens to the stream."""

import torch

from lightning_modules.evaluation.tracks import LaneTracks
from lightning_modules.networks.detection.outputs import ScoredBoxes


def people(*left: float) -> ScoredBoxes:
    """People 10 pixels wide, at these places."""
    boxes = torch.tensor([[x, 0.0, x + 10, 20.0] for x in left]).reshape(-1, 4)
    return ScoredBoxes(boxes, torch.full((len(left), 2), 0.5), torch.full((len(left),), 0.9))


def ids(tracks: LaneTracks, *left: float) -> list[int]:
    return sorted(tracks.update(people(*left)).track_ids.tolist())


def test_every_video_counts_its_people_from_zero():
    tracks = LaneTracks(2)
    for video in ("a", "b"):
        tracks.start(video)
        assert ids(tracks, 0, 50) == [0, 1]
        assert ids(tracks, 1, 51) == [0, 1]
        assert ids(tracks, 2, 52, 100) == [0, 1, 2]


def test_a_video_that_starts_anew_recognises_nobody_and_repeats_no_number():
    tracks = LaneTracks(2)
    tracks.start("camera")
    assert ids(tracks, 0, 50) == [0, 1]
    tracks.start("camera")
    assert ids(tracks) == []
    assert ids(tracks, 0) == [2]
    tracks.start("camera")
    assert ids(tracks, 0, 50) == [3, 4]


def test_a_person_who_moves_on_by_most_of_his_width_is_recognised():
    """7 of 10 pixels: an overlap of 3 / 17. By 9 of 10, which is 1 / 19, nobody is."""
    tracks = LaneTracks(2)
    tracks.start("a")
    assert [ids(tracks, place) for place in (0, 7, 14, 23)] == [[0], [0], [0], [1]]
