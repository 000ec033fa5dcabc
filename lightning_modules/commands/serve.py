"""The command ``serve``: predict, and show it in the browser while it runs."""

from __future__ import annotations

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from callbacks.events.reporter import EventReporter
from callbacks.page.callback import LivePage


def serve(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    rules: str | None = None,
    ckpt_path: str | None = None,
    weights_only: bool | None = True,
) -> None:
    """Predict on a source and show it on a page: live pictures with boxes, delay, events, and ``/health`` as JSON.

    If the config has a ``LivePage``, its settings replace host, port and token.

    Args:
        host: address that the page listens on. 127.0.0.1 is reachable from this machine alone; any other needs a token.
        port: port of the page; 0 takes a free one.
        token: secret that requests must carry, as ``?token=`` or ``Authorization: Bearer``. ``$NAME`` takes it from the
            environment.
        rules: file of event rules. Events are shown and written to ``runs/events``; see ``EventReporter``.
        ckpt_path: checkpoint of a run, in place of ``--weights``.
        weights_only: not used; checkpoints are always read as weights only.
    """
    if not any(isinstance(each, LivePage) for each in trainer.callbacks):
        # Before those that write, whose time is not part of the delay; behind the one that stops everything.
        trainer.callbacks.insert(1, LivePage(host, port, token))
    if rules is not None:
        trainer.callbacks.append(EventReporter(rules))
    trainer.predict(
        model, datamodule=datamodule, return_predictions=False, ckpt_path=ckpt_path, weights_only=weights_only
    )
