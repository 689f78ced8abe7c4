"""Files that a run writes: each run begins from the same ones."""
