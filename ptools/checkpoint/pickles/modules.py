"""Whole pickled modules: the state_dict of each, read from its attributes, not by its class.

What a state_dict holds and in which order is that of torch/nn/modules/module.py in torch's source.
No `_metadata` is made: the versions in it are attributes of classes, which no pickle holds. Without
them `load_state_dict` of torch's own modules takes what it finds by name.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from ptools.checkpoint.errors import CorruptCheckpoint
from ptools.checkpoint.pickles.globals import Place, dotted, where
from ptools.checkpoint.pickles.nodes import ATOMS, Call, Dict, List, Node, Tuple, mapping
from ptools.checkpoint.pickles.tensors import ordered_dict, tensor_of

_MOST = 100_000_000  # characters of names: a module that holds another twice, and so on, has no end
_EACH = 100  # characters that any name counts for, besides its own
_PARTS = {"_parameters", "_buffers", "_modules"}
_COMPILED = "torch._dynamo.eval_frame.OptimizedModule"
_WRAPPERS = {  # class -> what it calls the module in it
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch.nn.parallel.distributed_cpu.DistributedDataParallelCPU": "module",
    "torch.optim.swa_utils.AveragedModel": "module",
    _COMPILED: "_orig_mod",
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel": (
        "_fsdp_wrapped_module"
    ),
    "torch.distributed.algorithms._checkpoint.checkpoint_wrapper.CheckpointWrapper": (
        "_checkpoint_wrapped_module"
    ),
    "lightning.fabric.wrappers._FabricModule": "_forward_module",
    "lightning_fabric.wrappers._FabricModule": "_forward_module",
}
_VARIABLES = {"torch.nn.parameter.Parameter", "torch.autograd.variable.Variable"}
_REQUIRES_GRAD = {  # which argument tells it; hooks follow
    "torch._utils._rebuild_tensor_v2": 4,
    "torch._utils._rebuild_tensor_v3": 4,
    "torch._utils._rebuild_qtensor": 5,
    "torch._utils._rebuild_meta_tensor_no_storage": 3,
}
_QUANTIZED = ("torch.ao.nn.quantized.", "torch.nn.quantized.")
_HARMLESS_HOOK = "torch.nn.utils.spectral_norm.SpectralNormStateDictHook"  # adds a version

_Named: TypeAlias = list[tuple[str, Node]]


@dataclass(frozen=True, slots=True)
class Found:
    """A pickled module that became its state_dict.

    `where` is its place, "" for the root; `path` its class, inside all wrappers. `wrappers` are the
    classes left out around it and within. `notes` tell what its own class might do otherwise.
    """

    where: str
    path: str
    tensors: int
    wrappers: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def label(self) -> str:
        """Its class, and where it was."""
        return f"{self.path} at {self.where}" if self.where else self.path

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        names = [path.rpartition(".")[2] for path in self.wrappers]
        peeled = f", without {', '.join(names)}" if names else ""
        notes = "".join(f"; {note}" for note in self.notes)
        return f"{place}{self.path}, {self.tensors} tensors{peeled}{notes}"


class Parts(NamedTuple):
    """What a module holds itself, by name; a module called "" is in this one's place."""

    tensors: _Named
    modules: _Named


def state_dicts(root: Node) -> tuple[Node, list[Found]]:
    """Put the state_dict of each pickled module in its place, in the tree itself.

    Raises:
        CorruptCheckpoint: modules hold themselves, or a tensor does not add up.
    """
    made: dict[int, Node] = {}
    found: list[Found] = []
    holders: list[Node] = []  # changed when all is found: a module's own dicts may be among them
    collector = Collector()
    seen: set[int] = set()
    work: deque[tuple[Node, Place | None]] = deque([(root, None)])
    while work:
        node, place = work.popleft()
        if isinstance(node, ATOMS) or id(node) in seen:
            continue
        seen.add(id(node))
        if _is_module(node):
            reader = _Reader()
            tensors = collector.collect(node, reader.parts)
            made[id(node)] = ordered_dict(list(tensors.items()))
            found.append(reader.found(where(place), len(tensors), collector.unread))
        else:
            holders.append(node)
            work.extend(_below(node, place))
    replaced = made.get(id(root), root)
    for holder in holders if made else ():
        _replace(holder, made)
    return replaced, found


class Collector:
    """Makes state_dicts of modules of any kind; `unread` is what the last one lacks, by name."""

    def __init__(self) -> None:
        self.unread: list[str] = []
        self._left = _MOST

    def collect(self, root: Node, parts_of: Callable[[str, Node], Parts]) -> dict[str, Node]:
        """The tensors of a module and of all in it. `parts_of` reads one, given its name too.

        Raises:
            CorruptCheckpoint: modules hold themselves, or a tensor does not add up.
        """
        tensors: dict[str, Node] = {}
        self.unread = []
        work = [("", root)]
        while work:
            name, module = work.pop()
            parts = parts_of(name, module)
            self._spend(name, [*parts.tensors, *parts.modules])
            for own, value in parts.tensors:
                if tensor := _plain_tensor(value):
                    tensors[_joined(name, own)] = tensor
                elif value is not None:
                    self.unread.append(_joined(name, own))
            work += [(_joined(name, own), child) for own, child in reversed(parts.modules)]
        return tensors

    def _spend(self, name: str, parts: _Named) -> None:
        self._left -= (1 + len(parts)) * (_EACH + len(name)) + sum(len(own) for own, _ in parts)
        if self._left < 0:
            raise CorruptCheckpoint("the modules are too many to be real, or hold themselves")


class _Reader:
    """Reads the modules of one pickled model, and keeps in mind what is special about them."""

    def __init__(self) -> None:
        self._path = ""
        self._wrappers: dict[str, None] = {}
        self._hooked: list[str] = []
        self._by_code: list[str] = []

    def parts(self, name: str, node: Node) -> Parts:
        """What a module holds, as its `state_dict` method would take it."""
        path, state = _class(node), _state(node)
        if path in _WRAPPERS and (inside := _inside(node, path, state)):
            self._wrappers[path] = None
            return Parts([], [("", inside)])
        self._path = self._path or path
        if state is None or path.startswith(_QUANTIZED):
            self._by_code.append(name)
        if state is None:
            return Parts([], [])
        if any(_class(hook) != _HARMLESS_HOOK for hook in _hooks(state)):
            self._hooked.append(name)
        left_out = _names(state.get("_non_persistent_buffers_set"))
        buffers = _entries(state["_buffers"]).items()
        persistent = [(own, value) for own, value in buffers if own not in left_out]
        children = _entries(state["_modules"]).items()
        return Parts(
            [*_entries(state["_parameters"]).items(), *persistent],
            [(own, child) for own, child in children if child is not None],
        )

    def found(self, place: str, tensors: int, unread: list[str]) -> Found:
        notes = [
            f"{_shown(names)} {says}"
            for names, says in (
                (unread, "no tensor that can be read: left out"),
                (self._hooked, "changed by a hook when torch makes a state_dict: it was not run"),
                (self._by_code, "saved by code of its own, which was not run: left out"),
            )
            if names
        ]
        return Found(place, self._path, tensors, tuple(self._wrappers), tuple(notes))


def _is_module(node: Node) -> bool:
    return _state(node) is not None or (isinstance(node, Call) and _class(node) == _COMPILED)


def _state(node: Node) -> dict[str, Node] | None:
    """The attributes of a module; None if the node is none.

    They are its state, or an argument of what makes it (torch.fx's GraphModule).
    """
    if not isinstance(node, Call):
        return None
    arguments = node.args.elements if isinstance(node.args, Tuple) else []
    for part in [*reversed(node.states), *arguments]:
        attributes = _entries(part)
        if attributes.keys() >= _PARTS:
            return attributes
    return None


def _inside(wrapper: Call, path: str, state: dict[str, Node] | None) -> Node | None:
    """The module that a wrapper is around."""
    if state is not None:
        return _entries(state["_modules"]).get(_WRAPPERS[path])
    return next(iter(wrapper.args.elements), None)  # OptimizedModule(module, ...)


def _class(node: Node) -> str:
    path = dotted(node.function) if isinstance(node, Call) else ""
    if path == "copyreg._reconstructor" and isinstance(node.args, Tuple) and node.args.elements:
        return dotted(node.args.elements[0])  # pickle's protocols 0 and 1
    return path


def _entries(node: Node) -> dict[str, Node]:
    return {name: value for name, value in mapping(node) or () if isinstance(name, str)}


def _hooks(state: dict[str, Node]) -> list[Node]:
    return [hook for _, hook in mapping(state.get("_state_dict_hooks")) or ()]


def _names(node: Node) -> set[Node]:
    """What is in a pickled set."""
    match node:
        case Call(args=Tuple([List(elements)])) if node.path == "builtins.set":
            return set(elements)
    return set()


def _plain_tensor(node: Node) -> Call | None:
    """A tensor as a state_dict has it: no Parameter, no gradient, no hooks. None for all else."""
    if isinstance(node, Call) and node.path in _VARIABLES:  # up to torch 0.3
        match node:
            case Call(args=Tuple([data, *_])) | Call(states=[Tuple([data, _, _, _, _])]):
                node = data
    tensor = tensor_of(node)
    if tensor is None:
        return None
    call = tensor.call
    at = _REQUIRES_GRAD.get(call.path)
    if at is None or call.args.elements[at : at + 1] != [True]:
        return call
    arguments = [*call.args.elements[:at], False, *call.args.elements[at + 1 :]]
    if len(arguments) > at + 1:
        arguments[at + 1] = ordered_dict([])
    return Call(call.function, Tuple(arguments))


def _joined(module: str, name: str) -> str:
    return f"{module}.{name}" if module and name else module or name


def _shown(names: list[str]) -> str:
    """The first of several names, with a verb."""
    name = repr(names[0]) if names[0] else "the model"
    return f"{name} is" if len(names) == 1 else f"{name} (and {len(names) - 1} more) are"


def _below(node: Node, place: Place | None) -> Iterator[tuple[Node, Place | None]]:
    """What a node holds and where; the parts an object is made of are where it is."""
    if isinstance(node, Call):
        yield from ((part, place) for part in (node.args, node.kwargs, *node.states))
    if isinstance(node, List | Tuple | Call):
        for index, element in enumerate(node.elements):
            yield element, Place(place, index)
    if isinstance(node, Dict | Call):
        for key, value in node.pairs:
            yield value, Place(place, key)


def _replace(holder: Node, made: dict[int, Node]) -> None:
    """Let a node hold what was made of its parts."""
    if isinstance(holder, List | Tuple | Call):
        holder.elements[:] = [made.get(id(element), element) for element in holder.elements]
    if isinstance(holder, Dict | Call):
        holder.pairs[:] = [(key, made.get(id(value), value)) for key, value in holder.pairs]
    if isinstance(holder, Call):
        holder.states[:] = [made.get(id(state), state) for state in holder.states]
        holder.args = made.get(id(holder.args), holder.args)
        holder.kwargs = made.get(id(holder.kwargs), holder.kwargs)
