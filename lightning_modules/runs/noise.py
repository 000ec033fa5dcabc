"""Uninteresting messages of libraries: tips for other products, what is not so here, deprecations of their own code.

Each is named by its words and by its source, so nothing else is lost.
"""

from __future__ import annotations

import logging
import re
import warnings
from typing import NamedTuple

LIGHTNING_LOGGER = "lightning.pytorch.utilities.rank_zero"
SAID = (
    r"💡 Tip: .*(litlogger|litmodels)",
    r"TPU available: False",
    r"\nDetected KeyboardInterrupt, attempting graceful shutdown",  # the last line says more
)
"""Beginnings of uninteresting messages of Lightning's log."""


class Warned(NamedTuple):
    """Warning that is not shown."""

    message: str
    """Beginning of the message."""
    module: str
    """Module in which it is raised."""
    category: type[Warning] = UserWarning


WARNED = (
    # A frozen teacher is meant to be in eval mode.
    Warned(r"Found \d+ module\(s\) in eval mode at the start of training", r"lightning\.pytorch\.loops\.fit_loop"),
    Warned(r"Precision .* is not supported by the model summary", r"lightning\.pytorch\.utilities\.model_summary"),
    # Where nothing was scored, the nan is reported with its reason.
    Warned(
        r"The ``compute`` method of metric \w+ was called before the ``update``", r"torchmetrics\.utilities\.prints"
    ),
    # Code of torch and Lightning that calls its own deprecated functions.
    Warned(r".*LeafSpec", r"lightning\.pytorch\.utilities\._pytree", Warning),
    Warned(r"`torch\.jit\.script` is deprecated", r"torch\.jit\._script", FutureWarning),
    Warned(r"`torch\.jit\.script` is deprecated", r"torch\.jit\._script", DeprecationWarning),
)


class _Uninteresting(logging.Filter):
    """Filter of a log that leaves out what ``SAID`` describes."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not any(re.match(beginning, record.getMessage()) for beginning in SAID)


_UNINTERESTING = _Uninteresting()


def quieten() -> None:
    """Keep useless messages off the screen, from now on."""
    for each in WARNED:
        warnings.filterwarnings("ignore", each.message, each.category, each.module)
    logging.getLogger(LIGHTNING_LOGGER).addFilter(_UNINTERESTING)
