"""Programs that draw the same numbers in each run."""
