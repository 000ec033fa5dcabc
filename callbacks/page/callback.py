"""The callback that shows a prediction in the browser while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.events.reporter import EventReporter
from callbacks.files.result_files import say
from callbacks.page.board import Board
from callbacks.page.server import PageServer, check_access
from callbacks.secret import secret
from lightning_modules.evaluation.tracked import TrackedFrame

MOST_AWAITED = 1000
"""Frames of which only the moment of receipt is known yet."""


class LivePage(Callback):
    """Show live pictures with boxes, delay, frames per second and the newest events in the browser.

    The page lives as long as the prediction. It takes events from every ``EventReporter`` beside it, and draws their
    zones. Prediction never waits for those who look: they get the newest picture there is, see ``PageServer`` for the
    addresses. Frames themselves are needed, which ``PredictDataModule`` gives.

    Args:
        host: 127.0.0.1 is seen from this machine alone; any other needs a token.
        port: 0 takes a free one.
        token: secret that requests must carry; ``$NAME`` takes it from the environment.
        person_threshold: least person score. action_threshold: least action score.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 8000,
        token: str | None = None,
        person_threshold: float = 0.5,
        action_threshold: float = 0.2,
    ) -> None:
        self.host, self.port = host, port
        self.token = None if token is None else secret(token, "token")
        self.person_threshold, self.action_threshold = person_threshold, action_threshold
        check_access(host, port, self.token)
        self._server: PageServer | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        reporters = [each for each in trainer.callbacks if isinstance(each, EventReporter)]
        rules = [rule for reporter in reporters for rule in reporter.rules]
        cameras = getattr(trainer.datamodule, "source_health", tuple)
        self._board = Board(self.person_threshold, self.action_threshold, rules, cameras)
        self._received: dict[tuple[str, float], float] = {}
        server = PageServer(self._board, self.host, self.port, self.token)
        server.start()
        self._server = server
        self._heard = [reporter.listeners for reporter in reporters]
        for listeners in self._heard:
            listeners.append(self._board.tell)
        say(f"page: {server.address}{'' if self.token is None else '?token=... (the token)'}")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Sequence[TrackedFrame],
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._server is None:
            return
        if (capture := getattr(batch, "capture", None)) is not None:
            self._remember(batch, capture)
            self._board.count(capture.dropped, capture.reconnections)
        for frame in outputs:
            self._board.show(frame, self._received.pop((frame.video_id, frame.seconds), None))
        if (is_last := getattr(batch, "is_last", None)) is not None:
            for row in is_last.nonzero().flatten().tolist():
                self._board.end(batch.video_ids[row])

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _remember(self, batch: Any, capture: Any) -> None:
        """Keep when frames were received, for their predictions may come some frames later."""
        times = zip(batch.video_ids, batch.timestamps.tolist(), capture.received.tolist(), strict=True)
        for video_id, seconds, received in times:
            self._received |= {(video_id, each): moment for each, moment in zip(seconds, received, strict=True)}
        while len(self._received) > MOST_AWAITED:
            del self._received[next(iter(self._received))]

    def _stop(self) -> None:
        if self._server is None:
            return
        for listeners in self._heard:
            listeners.remove(self._board.tell)
        self._server.stop()
        self._server = None
