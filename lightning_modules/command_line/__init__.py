"""The command line itself: how arguments and config files become objects, and what is refused on the way."""
