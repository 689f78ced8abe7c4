"""The numbers of the sampled steps as tables: a module in each row, and what is odd about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from ptools.debug.findings import Table
from ptools.debug.gradients.samples import Series

_ROWS = 60
_GRADIENTS = (
    "gradient of",
    "norm first",
    "median",
    "last",
    "largest value",
    "zeros %",
    "step/weight",
    "",
)
_OUTPUTS = "output of", "mean", "std", "zeros %"
_VANISHED = 1e-7  # of the largest gradient of any module
_EXPLODED = 1e3  # times what it was at first


def sample_tables(series: Mapping[str, Series], steps: Sequence[int]) -> Iterator[Table]:
    """A row for each module with parameters; of a model with very many, for each group of them."""
    when = f"at steps {', '.join(map(str, steps))}"
    trained = {name: one for name, one in series.items() if one.norms}
    most = max((median(one.norms) for one in trained.values()), default=0.0)
    rows = tuple(_gradients(name, group, most) for name, group in _groups(trained).items())
    if rows:
        yield Table(f"Gradients {when}, and how far a step moves the weights", _GRADIENTS, rows)
    outputs = {name: one for name, one in series.items() if one.outputs}
    rows = tuple(_outputs(name, group) for name, group in _groups(outputs).items())
    if rows:
        yield Table(f"Outputs {when}: the median of the steps", _OUTPUTS, rows)


def _gradients(name: str, group: list[Series], most: float) -> tuple[str | None, ...]:
    norms = [
        sum(one**2 for one in step) ** 0.5
        for step in zip(*(one.norms for one in group), strict=False)
    ]
    values, zeros = sum(one.values for one in group), sum(one.zeros for one in group)
    updates = [value for one in group for value in one.updates]
    return (
        name,
        _number(norms[0]),
        _number(median(norms)),
        _number(norms[-1]),
        _number(max(one.largest for one in group)),
        _number(100 * zeros / values if values else None),
        _number(median(updates) if updates else None),
        _odd(norms, most),
    )


def _outputs(name: str, group: list[Series]) -> tuple[str | None, ...]:
    columns = zip(*(step for one in group for step in one.outputs), strict=True)
    mean, deviation, zeros = map(median, columns)
    return name, _number(mean), _number(deviation), _number(100 * zeros)


def _odd(norms: list[float], most: float) -> str:
    first, last = norms[0], norms[-1]
    if not last < float("inf") or (last > _EXPLODED * first > 0 and last > 1):
        return "exploding"
    if not any(norms):
        return "zero"
    return "vanishing" if median(norms) < _VANISHED * most else ""


def _groups(series: Mapping[str, Series]) -> dict[str, list[Series]]:
    """Few enough groups of modules, by the beginnings of their names."""
    depth = max((name.count(".") for name in series), default=0) + 1
    while depth > 1 and len({_cut(name, depth) for name in series}) > _ROWS:
        depth -= 1
    groups: dict[str, list[Series]] = {}
    for name, one in series.items():
        groups.setdefault(_cut(name, depth), []).append(one)
    return groups


def _cut(name: str, depth: int) -> str:
    return ".".join(name.split(".")[:depth])


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.3g}"
