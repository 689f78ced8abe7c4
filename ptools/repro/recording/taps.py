"""Where in torch a recorder listens, besides its operations."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter as Workers
from torch.utils.data.dataloader import _SingleProcessDataLoaderIter as Single

from ptools.repro.suspects.notes import Noting

if TYPE_CHECKING:
    from ptools.repro.recording.recorder import Recorder

# These take over memory without an operation.
_ENTRANCES = ("from_numpy", "as_tensor", "asarray", "frombuffer", "from_dlpack")


@contextmanager
def tapped(recorder: Recorder) -> Iterator[None]:
    """Tell of foreign memory, of what models compute without gradients, and of fetching."""
    with ExitStack() as stack:
        for name in _ENTRANCES:
            _replace(stack, torch, name, _entrance(getattr(torch, name), name, recorder))
        _replace(stack, nn.Module, "__call__", _outermost(nn.Module.__call__, recorder))
        for owner, name, aside in (
            (Single, "_next_data", False),
            # Workers' results come in any order, and are made of nothing that others compute.
            (Workers, "_get_data", True),
        ):
            _replace(stack, owner, name, _fetch(getattr(owner, name), recorder, aside))
        add = torch.optim.Optimizer.add_param_group
        _replace(stack, torch.optim.Optimizer, "add_param_group", _given(add, recorder))
        if recorder.children is not None:
            _replace(stack, Workers, "__init__", _noting(Workers.__init__, recorder.children))
        yield


def _replace(stack: ExitStack, owner: Any, name: str, new: Any) -> None:
    stack.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, new)


def _entrance(enter: Any, name: str, recorder: Recorder) -> Any:
    @functools.wraps(enter)
    def entered(*args: Any, **kwargs: Any) -> Any:
        out = enter(*args, **kwargs)
        recorder.entered(f"torch.{name}", out)
        return out

    return entered


def _outermost(call: Any, recorder: Recorder) -> Any:
    modules = recorder.modules

    def evaluated(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled() or modules.current() is not None:
            return call(self, *args, **kwargs)
        out = call(self, *args, **kwargs)
        recorder.evaluated(out)
        return out

    return evaluated


def _given(add: Any, recorder: Recorder) -> Any:
    @functools.wraps(add)
    def given(self: Any, group: Any) -> None:
        add(self, group)
        recorder.given(self, self.param_groups[-1]["params"])

    return given


def _fetch(fetch: Any, recorder: Recorder, aside: bool) -> Any:
    @functools.wraps(fetch)
    def fetched(self: Any, *args: Any, **kwargs: Any) -> Any:
        with recorder.fetching(aside):
            return fetch(self, *args, **kwargs)

    return fetched


def _noting(start: Any, children: Path) -> Any:
    """Workers note what they take in, also those that are spawned."""

    @functools.wraps(start)
    def started(self: Any, loader: Any) -> None:
        theirs = loader.worker_init_fn
        loader.worker_init_fn = Noting(theirs, children)
        try:
            start(self, loader)
        finally:
            loader.worker_init_fn = theirs

    return started
