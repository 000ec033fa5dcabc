"""python -m datamodules.puppets --size small --root data/puppets"""

from __future__ import annotations

import argparse
from typing import get_args

from datamodules.errors import shown_in_one_line
from datamodules.puppets.source import Puppets, Size


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m datamodules.puppets", description="Make the Puppets data set.")
    parser.add_argument("--size", choices=get_args(Size), default="small")
    parser.add_argument("--root", default="data/puppets", help="the data go to ROOT/SIZE")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    source = Puppets(arguments.root, arguments.size, arguments.seed)
    source.prepare()
    print(f"{source.folder} is complete")


if __name__ == "__main__":
    with shown_in_one_line():
        main()
