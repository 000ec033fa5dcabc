"""Lists of experiments: what their rows mean, and how one run of a row is trained and tested."""
