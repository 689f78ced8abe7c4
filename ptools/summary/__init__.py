"""Layers, shapes, parameters, FLOPs and memory of a model, without allocating its weights."""

from ptools.summary.engine import ForwardError, summarize
from ptools.summary.report import Summary
from ptools.summary.weights import summarize_checkpoint

__all__ = ["ForwardError", "Summary", "summarize", "summarize_checkpoint"]
