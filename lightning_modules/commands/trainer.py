"""Lightning's Trainer with the commands that run no loop."""

from __future__ import annotations

from lightning.pytorch import Trainer

from .check import check
from .export import export
from .score import score
from .switches import with_amounts


class OnlookerTrainer(Trainer):
    """Trainer whose further methods are commands; their arguments are the command line's."""

    __init__ = with_amounts(Trainer.__init__)
    check = check
    score = score
    export = export
