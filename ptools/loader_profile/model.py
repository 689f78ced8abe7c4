"""How many batches a second a number of workers delivers: a model that needs one measurement.

A closed system of customers (the workers), a station with several servers (the cores), one with a
single server (the consumer) and a delay (the waiting). Its asymptotic bounds predict loaders better
than mean value analysis does: the time of a batch, a sum over its samples, varies too little for
queues to build up below a bound.
"""

from ptools.loader_profile.report import Demand

_INSTANT = 1e-9  # seconds: what costs nothing still has a rate


def predict(demand: Demand, workers: int, cores: int, step: float = 0.0) -> float:
    """Batches a second in the steady state, for a consumer that takes `step` seconds a batch.

    The least of the bounds of operational analysis (Denning and Buzen, The Operational Analysis of
    Queueing Network Models, ACM Computing Surveys 10(3), 1978).
    """
    return min(_bounds(demand, workers, cores, step).values())


def limit(demand: Demand, workers: int, cores: int, step: float = 0.0) -> str:
    """What binds the rate: "alone" without workers, else "consumer", "cores" or "workers"."""
    bounds = _bounds(demand, workers, cores, step)
    return min(bounds, key=lambda name: bounds[name])


def _bounds(demand: Demand, workers: int, cores: int, step: float) -> dict[str, float]:
    """What each class allows; of two equal ones, what more workers cannot lift is first."""
    if workers == 0:
        return {"alone": 1 / max(demand.alone + demand.waiting + step, _INSTANT)}
    on_cores = demand.run + demand.helpers + demand.main
    return {
        "consumer": 1 / max(demand.main + step, _INSTANT),
        "cores": cores / max(on_cores, _INSTANT),
        "workers": workers / max(demand.run + demand.waiting, _INSTANT),
    }
