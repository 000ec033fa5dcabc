"""What ``main.py`` runs: its commands, and how it reads a command line, builds what it names and reports errors.

Only ``main.py`` imports from here, and what is here may import every room, as ``main.py`` may.
"""
