"""Results: lists of experiments, the programs around them, and the pages that they wrote."""
