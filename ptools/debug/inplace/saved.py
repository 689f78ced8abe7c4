"""What autograd has saved for a backward: where, and in which version."""

from __future__ import annotations

import weakref
from collections import deque
from typing import TYPE_CHECKING
from weakref import KeyedRef

import torch
from torch._C._autograd import _get_sequence_nr

from ptools.program.modules import Modules
from ptools.program.spots import Spot, spot

if TYPE_CHECKING:
    from ptools.debug.inplace.writes import Write

COMPARED = 16  # savings of one storage whose values are compared at a write
REMEMBERED = 256  # writes to one storage


class Saved:
    """A tensor that an autograd node saved; torch keeps this in the tensor's place."""

    __slots__ = ("__weakref__", "before", "entry", "moment", "number", "spot", "tensor", "version")

    def __init__(self, tensor: torch.Tensor, entry: Entry, moment: int, where: Spot) -> None:
        self.tensor = tensor
        self.version = tensor._version
        self.entry = entry
        self.moment = moment  # how many writes there were before
        self.spot = where
        self.number = _get_sequence_nr() - 1  # the node's
        self.before: torch.Tensor | None = None  # the values, before any write

    def writes(self) -> list[Write]:
        """What was written to its storage since."""
        return [write for write in self.entry.writes if write.moment > self.moment]


class Entry:
    """A storage of which something is saved: it lives as long as any of its Saved."""

    __slots__ = ("__weakref__", "saved", "writes")

    def __init__(self) -> None:
        self.saved: deque[weakref.ref[Saved]] = deque(maxlen=COMPARED)
        self.writes: deque[Write] = deque(maxlen=REMEMBERED)


class Ledger:
    """The storages of which something is saved at present."""

    def __init__(self, modules: Modules) -> None:
        self.live: dict[int, KeyedRef[int, Entry]] = {}  # by the storage's address
        self.moment = 0  # writes to such storages so far
        self.optimizer = ""  # the type whose step is running
        self._modules = modules

    def save(self, tensor: torch.Tensor) -> Saved:
        """Take the place of a tensor that is being saved."""
        if tensor.grad_fn is not None:
            tensor = _alias(tensor)  # a node's output would hold the node, and that holds us
        entry = self._entry_of(tensor)
        saved = Saved(tensor, entry, self.moment, spot(self._modules, 3))
        entry.saved.append(weakref.ref(saved))
        if _may_be_numpys(tensor):
            saved.before = _copy(tensor)
        return saved

    def entry(self, tensor: torch.Tensor) -> Entry | None:
        """The entry of a tensor's storage, if something of it is saved."""
        known = self.live.get(address(tensor))
        return None if known is None else known()

    def _entry_of(self, tensor: torch.Tensor) -> Entry:
        key = address(tensor)
        known = self.live.get(key)
        entry = None if known is None else known()
        if entry is None:
            entry = Entry()
            self.live[key] = KeyedRef(entry, self._forget, key)
        return entry

    def _forget(self, known: KeyedRef[int, Entry]) -> None:
        if self.live.get(known.key) is known:
            del self.live[known.key]


def address(tensor: torch.Tensor) -> int:
    """What tells the tensor's storage from all others that are alive."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except NotImplementedError:  # a sparse tensor has none of its own
        return id(tensor)


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether the tensor is memory that can be read."""
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.is_meta:
        return False
    if tensor.layout is not torch.strided or not tensor.numel():
        return False
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = tensor.storage_offset() + sum((size - 1) * step for size, step in steps)
    return (last + 1) * tensor.element_size() <= tensor.untyped_storage().nbytes()


def same(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors hold the same values; NaN is the same as NaN."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    if torch.equal(first, second):
        return True
    return bool(((first == second) | ((first != first) & (second != second))).all())


def _may_be_numpys(tensor: torch.Tensor) -> bool:
    """Whether data, not a parameter, lies in memory that NumPy may write too."""
    return (
        not tensor.requires_grad
        and is_plain(tensor)
        and not tensor.untyped_storage().resizable()  # torch never resizes such memory
    )


def _alias(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory and version counter, without the history."""
    if type(tensor) is not torch.Tensor:
        return tensor.detach()
    with torch._C._DisableTorchDispatch():  # our own mode need not see it
        return tensor.detach()


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    with torch._C._DisableTorchDispatch():
        return tensor.detach().clone()
