"""Linking: from boxes of single frames to tubes, online as frames arrive and offline."""
