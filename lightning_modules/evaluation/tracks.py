"""Identities of people on one lane of a stream."""

from __future__ import annotations

from ..linking.online import LinkedFrame, OnlineLinker
from ..networks.detection.outputs import ScoredBoxes

IOU_THRESHOLD = 0.1
"""Less than the linker's own: where frames are few, people move far between them, and nothing is lost where they are
many (results/pages/trackers.md)."""


class LaneTracks:
    """Link the detections of the videos that follow each other on a lane.

    Ids count from 0 in every video. A video may start anew in its middle, for example a camera that was lost for long.
    Nobody is recognised then, but ids go on counting, so that none stands for two people.
    """

    def __init__(self, num_classes: int) -> None:
        self._linker = OnlineLinker(num_classes, iou_threshold=IOU_THRESHOLD)
        self._video: str | None = None
        self._offset = self._next_id = 0

    def start(self, video_id: str) -> None:
        """The next frame is the first of a stream."""
        if video_id != self._video:
            self._next_id = 0
        self._video, self._offset = video_id, self._next_id
        self._linker.reset()

    def update(self, found: ScoredBoxes) -> LinkedFrame:
        """Return the people of the next frame."""
        linked = self._linker.update(*found)
        ids = linked.track_ids + self._offset
        if len(ids):
            self._next_id = max(self._next_id, int(ids.max()) + 1)
        return linked._replace(track_ids=ids)
