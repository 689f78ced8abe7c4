"""What a checkpoint's tree holds, as plain facts: each key with its value, its tensor or class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ptools.checkpoint.pickles.conversions import name_of, simplified
from ptools.checkpoint.pickles.globals import Place, where
from ptools.checkpoint.pickles.modules import Found
from ptools.checkpoint.pickles.nodes import ATOMS, Call, Dict, List, Node, Tuple, mapping
from ptools.checkpoint.pickles.tensors import ITEMSIZES, Tensor, tensor_of

_LONGEST_VALUE = 60  # characters
_LONGEST_NAME = 400
_DEEPEST = 30  # levels; what is below is counted, not listed
_FEW = 16  # arguments of what is shown as a value

Kind = Literal["dict", "list", "object", "module", "tensor", "value"]


@dataclass(frozen=True)
class TensorFacts:
    """One tensor. `stride` is None if it is contiguous, `bytes` are those it sees in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...] | None
    layout: str
    location: str
    bytes: int


@dataclass(frozen=True)
class Entry:
    """One key of the tree. `text` is the value in short, or the class of what is no plain dict."""

    key: str
    kind: Kind
    text: str = ""
    tensor: TensorFacts | None = None
    entries: tuple[Entry, ...] = ()

    def tensors(self) -> Iterator[TensorFacts]:
        """Those here and below."""
        if self.tensor is not None:
            yield self.tensor
        for entry in self.entries:
            yield from entry.tensors()


class TreeReader:
    """Lists a tree; `named` are the tensors that were met, with their dotted names."""

    def __init__(self, modules: Sequence[Found] = ()) -> None:
        self.named: list[tuple[str, Tensor]] = []
        self._modules = {module.where: module.path for module in modules}
        self._seen: dict[int, str] = {}

    def entry(self, node: Node) -> Entry:
        """The entry of the root.

        Raises:
            CorruptCheckpoint: a tensor does not add up.
        """
        return self._entry("", "", node, None, 0)

    def _entry(self, key: str, name: str, node: Node, place: Place | None, level: int) -> Entry:
        if isinstance(node, ATOMS):
            return Entry(key, "value", short(node))
        if (tensor := tensor_of(node)) is not None:
            return Entry(key, "tensor", tensor=self._facts(name, tensor))
        first = self._seen.setdefault(id(node), name)
        if first != name:
            return Entry(key, "value", f"the same as {first or 'the root'}")
        kind, text, parts = _described(node)
        if self._modules and (module := self._modules.get(where(place))):
            kind, text = "module", module
        if level >= _DEEPEST and parts:
            return Entry(key, kind, "nested too deep to be listed")
        entries = tuple(
            self._entry(step, _joined(name, step), part, Place(place, raw), level + 1)
            for raw, step, part in ((raw, _step(raw), part) for raw, part in parts)
        )
        return Entry(key, kind, text, entries=entries)

    def _facts(self, name: str, tensor: Tensor) -> TensorFacts:
        self.named.append((name, tensor))
        return TensorFacts(
            name,
            tensor.dtype,
            tensor.shape,
            None if tensor.contiguous else tensor.stride,
            tensor.layout,
            tensor.storage.location if tensor.storage else "",
            seen_bytes(tensor),
        )


def seen_bytes(tensor: Tensor) -> int:
    """The bytes of its storage that a tensor sees: fewer than its own where it is expanded."""
    if tensor.storage is None:
        return 0
    return min(tensor.nbytes, (tensor.reach - tensor.offset) * ITEMSIZES[tensor.dtype])


def short(value: Node) -> str:
    """A plain value as Python writes it, its middle left out if it is long."""
    if isinstance(value, str | bytes) and len(value) > _LONGEST_VALUE:
        unit = "characters" if isinstance(value, str) else "bytes"
        return f"{value[: _LONGEST_VALUE - 20]!r}... {len(value):,} {unit}"
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length():,} bits"
    return (
        str(value)
        if isinstance(value, bool | int | float | None)
        else repr(str(value) if isinstance(value, str) else value)
    )


def _described(node: Node) -> tuple[Kind, str, list[tuple[Node, Node]]]:
    """What a node is, the text that stands for it, and what it holds by key or number."""
    if isinstance(node, Dict):
        return ("dict", "" if node.pairs else "{}", node.pairs)
    if isinstance(node, List | Tuple):
        brackets = "[]" if isinstance(node, List) else "()"
        if all(isinstance(element, ATOMS) for element in node.elements):
            return "value", in_brackets(node.elements, brackets), []
        return "list", "", list(enumerate(node.elements))
    if not isinstance(node, Call):
        return "object", name_of(node), []
    if node.path == "collections.OrderedDict":
        return "dict", "" if node.pairs else "{}", node.pairs
    if plain := _plain_text(node):
        return "value", plain, []
    fields = [pair for state in node.states for pair in _fields(state)]
    return "object", name_of(node), [*enumerate(node.elements), *node.pairs, *fields]


def _fields(state: Node) -> list[tuple[Node, Node]]:
    """The attributes of an object, those in slots too."""
    parts = state.elements if isinstance(state, Tuple) else [state]
    return [pair for part in parts for pair in mapping(part) or ()]


def _plain_text(call: Call) -> str:
    """Of what is a value in all but name: a set, a device, a path, a numpy scalar or array."""
    arguments = call.args.elements if isinstance(call.args, Tuple) else []
    if len(arguments) > _FEW or call.kwargs is not None:
        return ""
    match arguments:
        case [List(elements) | Tuple(elements)] if call.path in ("builtins.set", "torch.Size"):
            if all(isinstance(element, ATOMS) for element in elements):
                return in_brackets(elements, "{}" if call.path == "builtins.set" else "()")
    if call.path == "torch.device":
        return f"device {', '.join(short(part) for part in arguments if isinstance(part, ATOMS))}"
    name = name_of(call)
    if not name.startswith(("numpy.", "pathlib.", "datetime.")):
        return ""
    plain = simplified(call)
    if isinstance(plain, ATOMS):
        return f"{short(plain)} ({name})"
    tensor = tensor_of(plain) if isinstance(plain, Call) else None
    return f"{name} {shape_text(tensor.shape)} {tensor.dtype}" if tensor else ""


def shape_text(shape: Sequence[int]) -> str:
    """`64x3x7x7`."""
    return "x".join(map(str, shape)) or "scalar"


def in_brackets(values: Sequence[Node], brackets: str) -> str:
    """`[0.9, 0.999]`; of many values, how many and the first and last."""
    text = ""
    for value in values:
        text += (", " if text else "") + short(value)
        if len(text) > _LONGEST_VALUE:
            return f"{len(values):,} values, {short(values[0])} to {short(values[-1])}"
    return brackets[0] + text + brackets[1]


def _step(key: Node) -> str:
    if isinstance(key, str):
        return str(key)
    return short(key) if isinstance(key, ATOMS) else f"({name_of(key)})"


def _joined(name: str, step: str) -> str:
    joined = f"{name}.{step}" if name else step
    return joined if len(joined) <= _LONGEST_NAME else f"...{joined[3 - _LONGEST_NAME :]}"
