"""The short search for the number of workers: which to run next, and which to take.

More workers help less and less: the rate over their number is concave, up to where it falls. So
the line through two measured numbers bounds the rate beyond them, and where the bound is not above
the best measured rate nothing need be run. The model only says where to begin: it cannot see that
workers wait for each other.
"""

from collections.abc import Callable, Mapping

RUNS = 8  # at most, in all
_AS_GOOD = 0.97  # of the best measured rate, which is the luckiest: fewer workers that reach it
_CLOSE = 0.98  # of the best rate: as much to hope for
_WORTH = 1.05  # of the best rate: what a further run must promise
_FEWER = 0.8  # of the chosen number: what is worth a run to save workers
_NOISE = 0.01  # of a measured rate
_TOO_LOW = 1.05  # how much faster than predicted a loader may be, at most

Curve = Mapping[int, float]  # a rate by the number of workers
Point = tuple[int, float]


def chosen(tried: Curve) -> int:
    """The smallest number of workers within 3 % of the best measured rate."""
    enough = _AS_GOOD * max(tried.values())
    return min(workers for workers, rate in tried.items() if rate >= enough)


def next_workers(tried: Curve, predicted: Curve, limit: int) -> int | None:
    """The number of workers to run next, at most `limit`; None when the search is done.

    `tried` holds the measured rates, that of 1 worker among them; `predicted` those of 0 to `limit`
    workers, in the same unit.
    """
    if len(tried) >= RUNS:
        return None
    knee = _knee(predicted, limit)
    if knee not in tried:
        return knee
    if 0 not in tried and _none_may_do(tried, predicted):
        return 0
    bound = _bound(tried, predicted)
    return _better(tried, bound, limit) or _fewer(tried, bound)


def _knee(predicted: Curve, limit: int) -> int:
    """The smallest number of workers from which more gain next to nothing."""
    return chosen({workers: predicted[workers] for workers in range(1, limit + 1)})


def _none_may_do(tried: Curve, predicted: Curve) -> bool:
    """Whether the consumer may do as well alone: it need not send batches between processes."""
    return predicted[0] >= min(0.7 * max(predicted.values()), max(tried.values()))


def _bound(tried: Curve, predicted: Curve) -> Callable[[int], float]:
    """The highest rate that an untried number above 1 can have."""
    known: list[Point] = [(0, 0.0), *sorted(point for point in tried.items() if point[0] > 0)]
    scale = _TOO_LOW * max(rate / predicted[w] for w, rate in known if w and w in predicted)

    def bound(workers: int) -> float:
        far, near = [point for point in known if point[0] < workers][-2:]
        rate = min(scale * predicted[workers], _line(near, far, workers))
        match [point for point in known if point[0] > workers][:2]:
            case [near, far] if near[1] <= far[1]:  # where the rate falls it is not concave
                rate = min(rate, _line(near, far, workers))
        return rate

    return bound


def _line(near: Point, far: Point, workers: int) -> float:
    """The rate on the line through two points, with the noise that puts it highest."""
    high, low = near[1] * (1 + _NOISE), far[1] * (1 - _NOISE)
    return high + (workers - near[0]) * (high - low) / (near[0] - far[0])


def _better(tried: Curve, bound: Callable[[int], float], limit: int) -> int | None:
    """The middle of the most promising gap between tried numbers, if it promises enough."""
    worth = _WORTH * max(tried.values())
    hopeful = [w for w in range(2, limit + 1) if w not in tried and bound(w) >= worth]
    if not hopeful:
        return None
    most = max(hopeful, key=bound)
    gap = [w for w in hopeful if not any(min(w, most) < t < max(w, most) for t in tried)]
    if bound(gap[0]) >= _CLOSE * bound(most):  # as much to hope for from the fewest
        return gap[0]
    return gap[len(gap) // 2]


def _fewer(tried: Curve, bound: Callable[[int], float]) -> int | None:
    """The smallest number that may be as good as the best, if it saves enough workers."""
    enough = _AS_GOOD * max(tried.values())
    candidates = range(2, int(_FEWER * chosen(tried)) + 1)
    return next((w for w in candidates if w not in tried and bound(w) >= enough), None)
