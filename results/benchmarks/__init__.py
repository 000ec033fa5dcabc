"""Programs that measure speed and memory, and write the pages of their figures."""
