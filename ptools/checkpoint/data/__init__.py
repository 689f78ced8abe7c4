"""The bytes of weights: where they lie, and how they are read, checked and moved."""
