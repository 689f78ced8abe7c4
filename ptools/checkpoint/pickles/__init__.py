"""A pickle as an inert tree: read, written, searched, and made plain, with nothing executed."""
