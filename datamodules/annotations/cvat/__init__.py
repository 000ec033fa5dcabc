"""CVAT's exports as annotation of one's own videos."""
