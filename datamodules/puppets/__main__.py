"""Make the Puppets data set: videos of articulated figures with their annotation.

    python -m datamodules.puppets --size small --root data/puppets

What is there already is kept.
"""

from __future__ import annotations

from typing import get_args

from datamodules.errors import shown_in_one_line
from datamodules.program_help import ProgramParser
from datamodules.puppets.source import Puppets, Size


def main() -> None:
    parser = ProgramParser(__doc__, "python -m datamodules.puppets")
    parser.add_argument("--size", choices=get_args(Size), default="small", help="how many videos (%(default)s)")
    parser.add_argument("--root", default="data/puppets", help="the data go to ROOT/SIZE (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    source = Puppets(arguments.root, arguments.size, arguments.seed)
    source.prepare()
    print(f"{source.folder} is complete")


if __name__ == "__main__":
    with shown_in_one_line():
        main()
