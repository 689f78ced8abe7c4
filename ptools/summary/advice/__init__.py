"""Hints on a design: what costs speed, by how much in this model, and what to change."""

from ptools.summary.advice.rules import advise

__all__ = ["advise"]
