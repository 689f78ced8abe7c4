"""The kinds of torch's calls, as far as the way of gradients is concerned."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ptools.debug.mode import tensors_in

_TENSOR_PROPERTIES = {"data", "T", "H", "mT", "mH", "real", "imag"}
_KINDS = {
    "escape": "item tolist numpy __float__ __int__ __array__ __complex__",
    "maker": "tensor as_tensor new_tensor scalar_tensor full new_full",
    "backward": "backward",
    "switch": "_set_grad_enabled",
    "silent": "requires_grad_ retain_grad register_hook __deepcopy__ __repr__ __bool__ size dim "
    "stride numel is_floating_point is_complex is_contiguous __len__ __hash__ __format__ "
    "_record_function_enter_new __reduce_ex__ register_post_accumulate_grad_hook",
}
_KIND = {name: kind for kind, names in _KINDS.items() for name in names.split()}
READS = {"detach", ".data", "__deepcopy__"}  # a parameter that is only copied is not used


def kind_of(func: Any) -> tuple[str, str]:
    """The kind of a function that a function mode was given, and its name for people.

    Kinds: `op`, `escape` (values leave torch), `maker` (values enter it), `cleared` (a gradient is
    set), `backward`, `grad`, `switch` (of gradients), `silent` (of no interest).
    """
    name = getattr(func, "__name__", "")
    if name in ("__get__", "__set__", "__delete__"):
        attribute = getattr(func.__self__, "__name__", "")
        if name != "__get__" and attribute == "grad":
            return "cleared", "grad = None"
        is_op = name == "__get__" and attribute in _TENSOR_PROPERTIES
        return ("op" if is_op else "silent"), f".{attribute}"
    if func is torch.autograd.grad:
        return "grad", "torch.autograd.grad"
    return _KIND.get(name, "op"), name


def inputs_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """The tensors that a call is given."""
    return [one for value in (*args, *kwargs.values()) for one in tensors_in(value)]


def outputs_of(name: str, args: tuple[Any, ...], out: Any) -> Iterator[torch.Tensor]:
    """The tensors that a call returns or writes."""
    if name == "__setitem__" or (name.startswith("_foreach") and name.endswith("_")):
        yield from tensors_in(args[0])
    else:
        yield from tensors_in(out)


def node_of(tensor: torch.Tensor) -> Any:
    """The node that made a tensor, if it belongs to a graph."""
    try:
        return tensor.grad_fn
    except RuntimeError:  # a view that was made without gradients, whose base was written since
        return None


def nodes_from(nodes: list[Any], seen: set[Any], limit: float = math.inf) -> Iterator[Any]:
    """The nodes of graphs that were not seen, until `limit` are; they are seen then."""
    while nodes and len(seen) < limit:
        node = nodes.pop()
        if node not in seen:
            seen.add(node)
            yield node
            nodes += [following for following, _ in node.next_functions if following is not None]


def leaves_of(tensors: list[torch.Tensor], limit: int = 20_000) -> list[torch.Tensor]:
    """The parameters from which tensors were computed, through at most `limit` nodes."""
    leaves = [one for one in tensors if node_of(one) is None]
    nodes = [node for node in map(node_of, tensors) if node is not None]
    seen: set[Any] = set(nodes)
    while nodes and len(seen) < limit:
        node: Any = nodes.pop()
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        following = {one for one, _ in node.next_functions if one is not None} - seen
        seen |= following
        nodes += following
    return leaves
