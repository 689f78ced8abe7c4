"""The dataflow of a model's forward, for TensorBoard."""

from ptools.summary.graph.events import write_graph

__all__ = ["write_graph"]
