"""Histograms of gradients, weights and outputs for TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ptools.events import event_file

_BINS = 64


class Histograms:
    """Collects histograms, and writes them in the end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._taken: list[tuple[int, str, Any]] = []

    def add(self, group: str, name: str, values: torch.Tensor, step: int) -> None:
        """Count the finite values of a tensor, to be shown as `group/name` at a step."""
        import numpy as np

        if values.is_complex():
            values = torch.view_as_real(values)
        numbers = values.detach().double().cpu().numpy().ravel()
        numbers = numbers[np.isfinite(numbers)]
        if numbers.size:
            self._taken.append(
                (step, f"{group}/{name}", _proto(numbers, *np.histogram(numbers, _BINS)))
            )

    def write(self) -> None:
        """Write all that was collected.

        Raises:
            UsageError: the folder cannot be written to.
        """
        from tensorboard.compat.proto.summary_pb2 import Summary

        with event_file(self._folder) as add:
            for step, tag, histogram in self._taken:
                add(step=step, summary=Summary(value=[Summary.Value(tag=tag, histo=histogram)]))


def _proto(numbers: Any, counts: Any, edges: Any) -> Any:
    from tensorboard.compat.proto.summary_pb2 import HistogramProto

    return HistogramProto(
        min=numbers.min(),
        max=numbers.max(),
        num=numbers.size,
        sum=numbers.sum(),
        sum_squares=(numbers * numbers).sum(),
        # A bucket holds what is above the limit before its own; the first one has none before it.
        bucket_limit=[edges[0], *edges[1:]],
        bucket=[0, *counts],
    )
