"""Takes down all that a training goes on from, before each forward that a backward follows."""

from __future__ import annotations

import random
import sys
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import nn

from ptools.dispatch import Unseen
from ptools.program.clock import held_by
from ptools.program.modules import Modules
from ptools.program.spots import Spot, spot
from ptools.repro.events import Value
from ptools.repro.recording.digests import Digester
from ptools.repro.recording.leaves import number, value_of, values_in
from ptools.repro.resume import state
from ptools.repro.resume.known import Known
from ptools.repro.resume.variables import copies, counters, variables


class Points:
    """The state of a training at its last forward.

    It is taken before the forward: later its batch norms have seen the batch, and dropout has
    drawn. What is taken again before a backward replaces it: a model may be tried before its
    checkpoint is loaded.
    """

    def __init__(self, modules: Modules, digester: Digester) -> None:
        self._modules = modules
        self._digester = digester
        self._known = Known()
        self._taken: tuple[list[Value], Spot] | None = None
        self._versions: dict[int, int] = {}
        self._pending = 0  # backwards since the last step

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch forwards while the block runs."""
        call = nn.Module.__call__

        def watched(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if torch.is_grad_enabled() and self._modules.current() is None:
                self._before_forward(module, (*args, *kwargs.values()))
            return call(module, *args, **kwargs)

        with ExitStack() as stack:
            stack.enter_context(self._known.noting())
            stack.callback(setattr, nn.Module, "__call__", call)
            nn.Module.__call__ = watched  # type: ignore[method-assign]
            yield

    def renew(self) -> None:
        """A batch has come, or a backward: the next forward counts."""
        self._taken = None
        self._versions.clear()

    def count(self, stepped: bool) -> None:
        """A step, or a backward, was made."""
        self._pending = 0 if stepped else self._pending + 1
        self.renew()

    def point(self) -> tuple[list[Value], Spot]:
        """The last point, or one taken now, with the generators as they are now."""
        with Unseen():
            if self._taken is None:
                self._take((), spot(self._modules, 2))
            assert self._taken is not None
            values, here = self._taken
            drawn = [state.named(state.DRAWN, one) for one in _generators()]
        return values + drawn, here

    def _before_forward(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        version = sum(one._version for one in module.parameters() if not one.is_inference())
        if self._taken is None or self._versions.get(id(module), version) != version:
            with Unseen():
                self._take(inputs, spot(self._modules, 3))
            self._versions.clear()
        self._versions[id(module)] = version

    def _take(self, inputs: tuple[Any, ...], here: Spot) -> None:
        models = self._known.models()
        optimizers = self._known.optimizers()
        held = {id(one) for owner in optimizers.values() for one in held_by(owner)}
        names: dict[int, str] = {}
        values = [
            *self._tensors(models, held, names),
            *self._optimizers(optimizers, names),
            *self._numbers(),
            *self._gradients(models, names),
        ]
        found = variables(sys._getframe())
        for name, tensors in copies(found, models.values()):
            values += [
                state.named(state.COPY, value_of(f"{name}[{path!r}]", one, self._digester))
                for path, one in tensors.items()
            ]
        values += [state.named(state.COUNTER, one) for one in counters(found)]
        given = values_in(inputs, "the input", self._digester)
        values += [state.named(state.INPUT, one) for one in given]
        values += [state.named(state.GENERATOR, one) for one in _generators()]
        self._taken = values, here

    def _tensors(
        self, models: dict[str, nn.Module], held: set[int], names: dict[int, str]
    ) -> Iterator[Value]:
        """Parameters and buffers; `names` is filled with those of parameters."""
        for label, model in models.items():
            is_trained = any(id(one) in held for one in model.parameters())
            for category, tensors in (
                (state.PARAMETER, model.named_parameters()),
                (state.BUFFER, model.named_buffers()),
            ):
                for path, one in tensors:
                    name = names.setdefault(id(one), f"{label}.{path}")
                    kind = category if is_trained else state.MODEL
                    yield state.named(kind, value_of(name, one, self._digester))

    def _optimizers(
        self, optimizers: dict[str, torch.optim.Optimizer], names: dict[int, str]
    ) -> Iterator[Value]:
        for label, owner in optimizers.items():
            for at, one in enumerate(held_by(owner)):
                if id(one) not in names:
                    name = names[id(one)] = f"parameter {at} of {label}"
                    yield state.named(state.PARAMETER, value_of(name, one, self._digester))
                for key, kept in owner.state.get(one, {}).items():
                    name = f"{key} of {names[id(one)]}"
                    for value in values_in(kept, name, self._digester):
                        yield state.named(state.OPTIMIZER, value)
            for at, group in enumerate(owner.param_groups):
                for key, setting in group.items():
                    if key not in ("params", "initial_lr"):
                        name = f"{key} of group {at} of {label}"
                        for value in values_in(setting, name, self._digester):
                            yield state.named(state.GROUP, value)

    def _numbers(self) -> Iterator[Value]:
        """What schedulers and gradient scalers count."""
        for category, owners in (
            (state.SCHEDULER, self._known.schedulers()),
            (state.SCALER, self._known.scalers()),
        ):
            for label, owner in owners.items():
                with suppress(Exception):  # one whose constructor is not through
                    for key, setting in owner.state_dict().items():
                        if category == state.SCALER or not key.startswith("_"):
                            yield state.named(category, number(f"{key} of {label}", setting))

    def _gradients(self, models: dict[str, nn.Module], names: dict[int, str]) -> Iterator[Value]:
        """Those that the next step adds to."""
        for model in models.values() if self._pending else ():
            for one in model.parameters():
                if one.grad is not None:
                    value = value_of(names[id(one)], one.grad, self._digester)
                    yield state.named(state.GRADIENT, value)


def _generators() -> list[Value]:
    """A digest of the state of each global generator."""
    states = {"Python's random": repr(random.getstate()).encode()}
    numpy = sys.modules.get("numpy")
    if numpy is not None and hasattr(numpy, "random"):
        states["NumPy's global"] = repr(
            [getattr(one, "tolist", lambda one=one: one)() for one in numpy.random.get_state()]
        ).encode()
    states["torch's"] = torch.get_rng_state().numpy().tobytes()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        for index, given in enumerate(torch.cuda.get_rng_state_all()):
            states[f"torch's cuda:{index}"] = given.numpy().tobytes()
    return [Value(name, "a generator", zlib.crc32(given)) for name, given in states.items()]
