"""Help of programs beside ``main.py``: it begins with what they are for and an example."""

from __future__ import annotations

import argparse


class ProgramParser(argparse.ArgumentParser):
    """Parser whose help begins with its description.

    Args:
        description: the purpose in a paragraph, an indented example, then further facts; shown as it is.
        prog: how the program is called.
    """

    def __init__(self, description: str, prog: str | None = None) -> None:
        super().__init__(prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def format_help(self) -> str:
        described, self.description = self.description, None
        usage_and_arguments = super().format_help()
        self.description = described
        return f"{(described or '').strip()}\n\n{usage_and_arguments}"
