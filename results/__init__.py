"""Lists of experiments: what runs them, and the tables and pictures made of their results."""
