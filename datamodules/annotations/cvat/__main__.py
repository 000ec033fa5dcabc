"""The command ``python -m datamodules.annotations.cvat``."""

from datamodules.annotations.cvat.convert import main

main()
