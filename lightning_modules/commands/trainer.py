"""Lightning's Trainer with the commands that run no loop."""

from __future__ import annotations

from lightning.pytorch import Trainer

from ..command_line.switches import with_amounts
from .analyse import analyse
from .check import check
from .export import export
from .maps import maps
from .score import score
from .serve import serve


class OnlookerTrainer(Trainer):
    """Trainer whose further methods are commands; their arguments are the command line's."""

    __init__ = with_amounts(Trainer.__init__)
    analyse = analyse
    check = check
    score = score
    export = export
    maps = maps
    serve = serve
