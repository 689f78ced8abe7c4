"""What an object of a class that `weights_only=True` refuses can become, read from its pickle.

Each rule takes the call that would make the object and gives a simpler node, whose parts may be in
need of conversion themselves, or DROPPED.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from itertools import islice
from typing import Final

from ptools.checkpoint.pickles import stdlib_objects as stdlib
from ptools.checkpoint.pickles.accepted import is_tensor
from ptools.checkpoint.pickles.globals import dotted, is_allowed, is_suspicious
from ptools.checkpoint.pickles.nodes import (
    ATOMS,
    Call,
    Dict,
    Global,
    List,
    Node,
    Storage,
    Tuple,
    children,
)
from ptools.checkpoint.pickles.numpy_objects import (
    array,
    array_of_buffer,
    dtype_name,
    raw_bytes,
    scalar,
)

EACH = 128  # bytes that an element of a list costs, about
DROPPED: Final = object()  # in place of a node: nothing plain can be made of it

_FEW = 64  # attributes among which one is looked for
_UNSOUND = (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError)


def simplified(node: Call | Global) -> Node:
    """One step of conversion; the node itself if its class may stay."""
    if isinstance(node, Global):
        return node if is_allowed(node.path) else DROPPED
    path = dotted(_class_of(node))
    if is_suspicious(path):
        return DROPPED
    rule = _RULES.get(path) or _rule_of_package(path)
    if rule is None and is_allowed(node.path):
        return node
    try:
        return (rule or _object)(node)
    except _UNSOUND:
        return DROPPED


def name_of(node: Node) -> str:
    """What a node is, in a list of changes: `argparse.Namespace`, `numpy.float64`."""
    if isinstance(node, Global):
        return node.path
    if not isinstance(node, Call):
        return type(node).__name__.lower()
    path = dotted(_class_of(node))
    try:
        if path in _SCALARS:
            return f"numpy.{dtype_name(node.args.elements[0])}"
        if path.endswith("._rebuild_from_type_v2"):
            return dotted(node.args.elements[1]) or path
    except _UNSOUND:
        return path
    return _NAMES.get(path) or path or "an object"


def kind_of(plain: Node) -> str:
    """The name of what became of a node, for people."""
    if plain is DROPPED:
        return ""
    if isinstance(plain, str):
        return "text"
    if plain is None:
        return "None"
    if is_tensor(plain):
        return "tensor"
    if isinstance(plain, Call):
        return plain.path.rpartition(".")[2]
    return type(plain).__name__.lower()


def new_bytes(node: Call | Global, made: Node) -> int:
    """About the memory of what a rule made; what the tree holds anyway costs nothing."""
    if isinstance(node, Global) or any(made is state for state in node.states):
        return 0
    if isinstance(made, str | bytes):
        return len(made)
    if is_tensor(made):
        return sum(part.nbytes for part in made.args.elements if isinstance(part, Storage))
    if isinstance(made, Dict | Call) and made.pairs is node.pairs:
        return 0
    parts = [] if isinstance(made, List) and made.elements is node.elements else children(made)
    return sum(EACH + (len(part) if isinstance(part, str | bytes) else 0) for part in parts)


def _rule_of_package(path: str) -> Callable[[Call], Node] | None:
    found = (rule for package, rule in _PACKAGES.items() if path.startswith(package))
    return next(found, None)


def _class_of(call: Call) -> Node:
    """The class; of what copyreg makes, its first argument."""
    if call.path in _COPYREG and isinstance(call.args, Tuple) and call.args.elements:
        return call.args.elements[0]
    return call.function


def _object(call: Call) -> Node:
    """Of any other class: what pickle puts into it, or else what it is made with."""
    if call.pairs:
        return Dict(call.pairs)
    if call.elements:
        return List(call.elements)
    arguments = call.args.elements
    if call.path == "copyreg._reconstructor" and arguments[2] is not None:
        return arguments[2]  # the value of a subclass of list, dict, str...
    if call.states:
        return DROPPED if (fields := _fields(call)) is None else fields
    if call.path in _COPYREG:
        return _made_with(arguments[1:] if call.path == "copyreg.__newobj__" else [])
    if call.new and call.kwargs is None:
        return _made_with(arguments)
    name = dotted(call.function).rpartition(".")[2].lstrip("_")
    is_member = name[:1].isupper() and len(arguments) == 1 and isinstance(arguments[0], ATOMS)
    return arguments[0] if is_member else DROPPED  # of an enum; functions are not called so


def _made_with(arguments: list[Node]) -> Node:
    """A subclass of str or int: its value. A namedtuple: a tuple."""
    if len(arguments) == 1 and isinstance(arguments[0], ATOMS):
        return arguments[0]
    return Tuple(arguments) if arguments else Dict([])


def _fields(call: Call) -> Node:
    """The attributes of an object as a dict, those in slots too; None if it has other state.

    A frozen dataclass with slots gives a list of values, without names.
    """
    match call.states:
        case [Dict() | List() as fields]:
            return fields
        case [Tuple([None, Dict() as slots])]:
            return slots
        case [Tuple([Dict(fields), Dict(slots)])]:
            return Dict([*fields, *slots])
        case [state] if state is call or state is None:  # addict.Dict is its own state
            return Dict([])
    return None


def _field(call: Call, name: str) -> Node:
    """One attribute; DROPPED if there is none of that name."""
    pairs = islice(_fields(call).pairs, _FEW)
    return next((value for key, value in pairs if key == name), DROPPED)


def _argument(call: Call) -> Node:
    return call.args.elements[0]


def _as_dict(call: Call) -> Node:
    return Dict(call.pairs)


def _retyped(call: Call) -> Node:
    """A tensor of a subclass: the plain tensor; one without a storage: the tensors inside."""
    function, kind, arguments, state = call.args.elements
    if function.path == "torch._utils._rebuild_wrapper_subclass":
        fields = _fields(Call(kind, Tuple([]), states=[state]))
        return DROPPED if fields is None else fields
    if kind.path not in ("torch.Tensor", "torch.nn.parameter.Parameter"):
        return Call(function, arguments)
    if call.path == _FROM_TYPE:
        return call
    return Call(Global(*_FROM_TYPE.rsplit(".", 1)), call.args)


def _sparse_csr(call: Call) -> Node:
    return Call(Global("torch._utils", "_rebuild_sparse_tensor"), call.args)


def _omegaconf(call: Call) -> Node:
    """A DictConfig or ListConfig holds nodes, a node its value."""
    match _content(call):
        case Dict(pairs):
            return Dict([(key, _unwrapped(value)) for key, value in pairs])
        case List(elements):
            return List([_unwrapped(element) for element in elements])
        case content:
            return _unwrapped(content)


def _unwrapped(node: Node) -> Node:
    for _ in range(2):  # a UnionNode holds another node
        if isinstance(node, Call) and node.path.startswith(_OMEGACONF_NODES):
            node = _content(node)
    return node


def _content(call: Call) -> Node:
    content = _field(call, "_content")
    return _field(call, "_val") if content is DROPPED else content


def _config_dict(call: Call) -> Node:
    return _field(call, "_fields")


def _drop(_: Call) -> Node:
    return DROPPED


_OMEGACONF_NODES = ("omegaconf.nodes.", "omegaconf.base.UnionNode")
_FROM_TYPE = "torch._tensor._rebuild_from_type_v2"
_COPYREG = ("copyreg.__newobj__", "copyreg.__newobj_ex__", "copyreg._reconstructor")
_MULTIARRAYS = ("numpy.core.multiarray", "numpy._core.multiarray")
_SCALARS = [f"{module}.scalar" for module in _MULTIARRAYS]
_PATHS = [
    f"{module}.{name}"
    for module in ("pathlib", "pathlib._local")
    for name in ("Path", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
]
_RULES: dict[str, Callable[[Call], Node]] = {
    "collections.OrderedDict": stdlib.ordered_dict,
    "builtins.bytes": raw_bytes,  # only an empty one is written so
    "builtins.frozenset": lambda call: Call(Global("__builtin__", "set"), call.args),
    "builtins.range": stdlib.numbers,
    "builtins.xrange": stdlib.numbers,
    "builtins.slice": lambda call: Tuple(call.args.elements),
    "builtins.object": _drop,
    "collections.defaultdict": _as_dict,
    "collections.deque": stdlib.deque,
    "yacs.config.CfgNode": _as_dict,  # its state is not empty when the dict is
    "fvcore.common.config.CfgNode": _as_dict,
    "detectron2.config.config.CfgNode": _as_dict,
    "ml_collections.config_dict.config_dict.ConfigDict": _config_dict,
    "ml_collections.config_dict.config_dict.FrozenConfigDict": _config_dict,
    **dict.fromkeys(_PATHS, stdlib.path),
    "datetime.datetime": stdlib.moment,
    "datetime.date": stdlib.moment,
    "datetime.time": stdlib.moment,
    "datetime.timedelta": stdlib.seconds,
    "uuid.UUID": lambda call: str(uuid.UUID(int=_field(call, "int"))),
    "decimal.Decimal": _argument,
    "fractions.Fraction": stdlib.fraction,
    "re._compile": _argument,
    "functools.partial": _drop,
    "operator.itemgetter": _drop,
    "numpy.dtype": dtype_name,
    **dict.fromkeys(_SCALARS, scalar),
    **dict.fromkeys([f"{module}._reconstruct" for module in _MULTIARRAYS], array),
    "numpy.core.numeric._frombuffer": array_of_buffer,
    "numpy._core.numeric._frombuffer": array_of_buffer,
    _FROM_TYPE: _retyped,
    "torch.tensor._rebuild_from_type_v2": _retyped,
    "torch.autograd.variable.Variable": _argument,
    "torch._utils._rebuild_sparse_csr_tensor": _sparse_csr,
    "torch._utils._rebuild_device_tensor_from_numpy": _argument,
    "torch._utils._rebuild_xla_tensor": _argument,
    "torch._utils._rebuild_mlc_tensor": _argument,
}
_PACKAGES: dict[str, Callable[[Call], Node]] = {
    "omegaconf.": _omegaconf,
    "numpy.random.": _drop,
    "torch.return_types.": _argument,
}
_NAMES = {
    "builtins.xrange": "range",
    "re._compile": "re.Pattern",
    "torch._utils._rebuild_sparse_csr_tensor": "torch.sparse_csr",
    **dict.fromkeys([f"{module}._reconstruct" for module in _MULTIARRAYS], "numpy.ndarray"),
    "numpy.core.numeric._frombuffer": "numpy.ndarray",
    "numpy._core.numeric._frombuffer": "numpy.ndarray",
}
