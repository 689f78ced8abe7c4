"""What our dispatch modes have in common."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch._C import _AutoDispatchBelowAutograd, _DisableTorchDispatch
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode


class DispatchMode(TorchDispatchMode):
    """Sees higher-order operators such as flex_attention too, and is not guarded from a compiler.

    torch would wrap `__torch_dispatch__` to keep its compiler out of it, which costs microseconds
    at each call. Nothing is compiled here.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


class Unseen:
    """A block in which our own operations are seen by no mode and no graph, ours and others'."""

    def __enter__(self) -> None:
        self._guards = _DisableTorchDispatch(), _AutoDispatchBelowAutograd()

    def __exit__(self, *error: object) -> None:
        del self._guards


def uncompiled() -> AbstractContextManager[object]:
    """Have compiled models run as they were written: compiled code has no lines."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance


def name_of(func: Any) -> str:
    """`aten::mm` for any overload of it."""
    if isinstance(func, HigherOrderOperator):
        return str(func.name())
    return str(func._overloadpacket._qualified_op_name)
