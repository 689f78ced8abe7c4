"""Runs that are kept to be compared, bit for bit or within a tolerance."""
