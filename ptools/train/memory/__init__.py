"""Memory of a training: less of it, what holds it, and how large a batch it has room for."""
