"""Which states a resumed run did not have as the uninterrupted one, and how each is saved."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from ptools.repro.events import Event
from ptools.repro.resume import state
from ptools.repro.resume.data import Lost, data_lost
from ptools.repro.resume.record import Difference, Record, differences, values_of

_SHOWN = 3  # names of one kind
_WHAT = {
    state.PARAMETER: (
        "parameters",
        "save model.state_dict(), and load it with load_state_dict before the first step",
    ),
    state.OPTIMIZER: (
        "the optimizer's state",
        "save optimizer.state_dict(), and load it before the first step",
    ),
    state.SCHEDULER: (
        "the learning rate scheduler",
        "save scheduler.state_dict() when scheduler.step() was made, and load it",
    ),
    state.GROUP: (
        "settings of the optimizer",
        "load optimizer.state_dict(), which holds them, after all schedulers were made",
    ),
    state.SCALER: ("the gradient scaler", "save scaler.state_dict(), and load it"),
    state.BUFFER: (
        "buffers, such as the running statistics of batch norms",
        "save model.state_dict(), which holds them, and not only model.parameters()",
    ),
    state.GRADIENT: (
        "gradients accumulated before the save",
        "save when optimizer.step() and zero_grad() were just made: no state_dict holds gradients",
    ),
    state.MODEL: (
        "a model that no optimizer holds, such as an average",
        "save its state_dict() too, and load it",
    ),
    state.COPY: (
        "tensors that the program keeps by the model's names, such as an average",
        "save them too, and load them",
    ),
}
_GENERATORS = {
    "Python's random": "random.getstate()",
    "NumPy's global": "numpy.random.get_state()",
    "torch's": "torch.get_rng_state()",
}


@dataclass(frozen=True)
class Start:
    """Where the resumed run goes on: run A and the number of its point, the other and its first."""

    a: Record
    at: int
    b: Record
    first: int

    @property
    def mine(self) -> Event:
        """The point of run A."""
        return self.a.events[self.at]

    @property
    def its(self) -> Event:
        """The first point of the resumed run."""
        return self.b.events[self.first]

    def differ(self, category: str) -> list[Difference]:
        """What differs between the two."""
        return differences(self.mine, self.its, category)


def kept_lost(start: Start) -> list[tuple[str, Lost]]:
    """What differs of that which the future is made of, by category, the most important first."""
    found: list[tuple[str, Lost]] = []
    for category, (what, save) in _WHAT.items():
        names = start.differ(category)
        if category == state.GROUP and {state.OPTIMIZER, state.SCHEDULER} & {
            one for one, _ in found
        }:
            continue  # it follows
        if names:
            found.append((category, Lost(what, _told(names), save)))
    return found


def lost(start: Start, is_parted: bool) -> list[Lost]:
    """All that was not restored and makes the runs part, or will."""
    found = [one for _, one in kept_lost(start)]
    if not is_parted:
        return found
    data = data_lost(start.a, start.at, start.b, start.first)
    found += data
    for one in start.differ(state.GENERATOR):
        if _matters(start, one.name, any(one.drawn for one in data)):
            call = _GENERATORS.get(one.name, "torch.cuda.get_rng_state_all()")
            found.append(
                Lost(
                    f"{one.name} generator",
                    (),
                    f"save {call} (ptools.rng_state() holds all), and set it back after "
                    "iter(loader), which draws too",
                )
            )
    return found


def generator_notes(start: Start, told: list[Lost]) -> list[str]:
    """Generators whose state differs and made no difference."""
    names = {one.what for one in told}
    return [
        f"{one.name} generator is in another state; no difference came of it up to here"
        for one in start.differ(state.GENERATOR)
        if f"{one.name} generator" not in names and _moves(start.a, 0, one.name)
    ]


def counter_facts(start: Start) -> list[str]:
    """Counters of the program's that differ."""
    moving: dict[str, set[str]] = {}
    for at in start.a.points:
        for name, value in values_of(start.a.events[at], (state.COUNTER,)).items():
            moving.setdefault(name.partition(": ")[2], set()).add(value.what)
    found = [one for one in start.differ(state.COUNTER) if len(moving[one.name]) > 1]
    return [one.told() for one in found[:_SHOWN]]


def _told(names: list[Difference]) -> tuple[str, ...]:
    more = len(names) - _SHOWN
    return (*(one.told() for one in names[:_SHOWN]), *((f"and {more} more",) if more > 0 else ()))


def _matters(start: Start, name: str, drawn: bool) -> bool:
    """Whether run A draws from a generator what the runs could differ by.

    DataLoaders draw from torch's for each epoch, used or not: there a draw in a forward counts, or
    one for the values of samples.
    """
    if name.startswith("torch") and not drawn:
        return any(
            _state(point, state.GENERATOR, name) != _state(point, state.DRAWN, name)
            for point in map(start.a.events.__getitem__, start.a.points)
            if point.step >= start.mine.step
        )
    return _moves(start.a, start.at, name)


def _moves(run: Record, since: int, name: str) -> bool:
    """Whether a run draws from a generator."""
    points = [run.events[at] for at in run.points if at >= since]
    return any(
        _state(one, state.GENERATOR, name) != _state(other, state.GENERATOR, name)
        for one, other in pairwise(points)
    )


def _state(point: Event, category: str, name: str) -> int | None:
    value = values_of(point, (category,)).get(f"{category}: {name}")
    return None if value is None else value.digest
