"""Messages that nobody needs are not on the screen, and all others are."""

from __future__ import annotations

import logging
import warnings

import pytest

from lightning_modules.runs.noise import LIGHTNING_LOGGER, quieten


@pytest.fixture
def shown(caplog):
    """A function that gives what of messages and warnings would be seen."""
    caplog.set_level(logging.INFO, LIGHTNING_LOGGER)

    def seen(message: str, *, module: str = "", category: type[Warning] = UserWarning) -> bool:
        with warnings.catch_warnings(record=True) as caught:
            warnings.resetwarnings()
            quieten()
            if module:
                warnings.warn_explicit(message, category, f"{module}.py", 1, module)
                return bool(caught)
            caplog.clear()
            logging.getLogger(LIGHTNING_LOGGER).info(message)
            return bool(caplog.records)

    return seen


FIT_LOOP = "lightning.pytorch.loops.fit_loop"
EVAL_MODE = "Found 218 module(s) in eval mode at the start of training. This may lead to unexpected behavior"
PRINTS = "torchmetrics.utilities.prints"
EMPTY = "The ``compute`` method of metric VideoMeanAveragePrecision was called before the ``update`` method which may"
JIT = "`torch.jit.script` is deprecated. Please switch to `torch.compile` or `torch.export`."


def test_tips_and_what_is_not_so_are_gone(shown):
    assert not shown(
        "💡 Tip: For seamless cloud logging and experiment tracking, try installing [litlogger](https://x)"
    )
    assert not shown("💡 Tip: For seamless cloud uploads and versioning, try installing [litmodels](https://x)")
    assert not shown("TPU available: False, using: 0 TPU cores")
    assert not shown("\nDetected KeyboardInterrupt, attempting graceful shutdown ...")
    assert not shown(EVAL_MODE, module=FIT_LOOP)
    assert not shown(EMPTY, module=PRINTS)
    assert not shown(JIT, module="torch.jit._script", category=FutureWarning)


def test_what_a_user_needs_to_know_is_shown(shown):
    assert shown("`Trainer.fit` stopped: `max_epochs=3` reached.")
    assert shown("💡 Tip: set --trainer.max_epochs")
    assert shown("TPU available: True, using: 8 TPU cores")
    assert shown("val/map is 0: no overlap >= 0.5", module="lightning_modules.base")
    assert shown("Metric `AUROC` will save all targets in a buffer", module=PRINTS)
    assert shown("The number of training batches (2) is smaller than the logging interval", module=FIT_LOOP)


def test_the_same_words_from_elsewhere_are_shown(shown):
    assert shown(EVAL_MODE, module="lightning_modules.base")
    assert shown(JIT, module="callbacks.measures.flops", category=FutureWarning)
    assert shown("`my_function` is deprecated", module="torch.jit._script", category=FutureWarning)
