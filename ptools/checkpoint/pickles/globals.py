"""The classes and functions a pickle names: what `torch.load(weights_only=True)` lets through.

The rules are those of torch/_weights_only_unpickler.py, from torch 2.6 to 2.13.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ptools.checkpoint.pickles.nodes import ATOMS, Call, Dict, Global, List, Node, Tuple
from ptools.checkpoint.pickles.tensors import STORAGES

_SHOWN_STEPS, _SHOWN_TEXT = 20, 60  # of a path, so that a hostile one stays short
_LONGEST_CHAIN = 8  # of getattr(getattr(...)): no class is nested deeper
DTYPES = (
    "bool uint8 int8 int16 int32 int64 uint16 uint32 uint64 float16 bfloat16 float32 float64 "
    "complex32 complex64 complex128 bits8 bits16 bits1x8 bits2x4 bits4x2 "
    "quint8 qint8 qint32 quint4x2 quint2x4 float8_e4m3fn "
    # The last two are newer than torch 2.6, which cannot read such a tensor in any form.
    "float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu float4_e2m1fn_x2"
).split()
_QSCHEMES = (
    "per_tensor_affine per_tensor_symmetric per_channel_affine per_channel_symmetric "
    "per_channel_affine_float_qparams"
).split()
_REBUILT = (
    "tensor tensor_v2 tensor_v3 qtensor sparse_tensor nested_tensor meta_tensor_no_storage "
    "parameter parameter_with_state wrapper_subclass device_tensor_from_numpy "
    "device_tensor_from_cpu_tensor"
).split()

# Whatever is in these modules can run code, reach files or the network, or make code.
_MODULES = frozenset(
    "os posix nt subprocess sys socket _socket socketserver shutil importlib imp runpy pty ctypes "
    "_ctypes pickle _pickle cPickle marshal shelve webbrowser codeop popen2 pip ensurepip venv "
    "asyncio _posixsubprocess multiprocessing multiprocess _winapi msvcrt winreg tempfile pdb bdb "
    "cProfile timeit doctest idlelib lib2to3 pydoc http httplib urllib urllib2 requests aiohttp "
    "httpx ftplib smtplib telnetlib xmlrpc ssl zipimport pkgutil linecache fileinput "
    "_frozen_importlib _frozen_importlib_external dill cloudpickle joblib jsonpickle".split()
)
_INNER_MODULES = frozenset(  # found as an attribute of any other module: torch.os.system
    "os posix nt subprocess sys socket shutil importlib runpy pty ctypes marshal".split()
)
_PACKAGES = (
    "torch.hub. torch.jit. torch._C._jit torch.package. torch.utils.cpp_extension. "
    "torch.utils.bottleneck. torch.utils.collect_env. torch._inductor. torch.distributed.rpc. "
    "torch.fx.graph_module. numpy.testing. numpy.f2py. numpy.distutils. numpy.ctypeslib. "
    "distutils.spawn. setuptools._distutils.spawn."
)
_RUNNING_PACKAGES = tuple(_PACKAGES.split())
_RUNNING = {
    f"{module}.{name}"
    for module, names in {
        "builtins": "eval exec compile __import__ open getattr setattr delattr globals locals vars "
        "input breakpoint execfile apply file reload help exit quit print",
        "operator": "attrgetter methodcaller call",
        "_operator": "attrgetter methodcaller call",
        "functools": "reduce",
        "_functools": "reduce",
        "io": "open open_code FileIO",
        "_io": "open open_code FileIO",
        "codecs": "open",
        "code": "interact InteractiveInterpreter InteractiveConsole",
        "commands": "getoutput getstatus getstatusoutput",
        "profile": "run runctx Profile",
        "trace": "Trace",
        "types": "CodeType FunctionType LambdaType",
        "torch": "load compile",
        "torch.serialization": "load _load _legacy_load",
        "torch.storage": "_load_from_bytes",
        "numpy": "load loadtxt genfromtxt fromfile memmap",
        "numpy.lib.npyio": "load loadtxt genfromtxt",
        "numpy.lib._npyio_impl": "load loadtxt genfromtxt",
        "numpy.lib.format": "read_array",
        "pandas": "read_pickle eval",
        "pandas.io.pickle": "read_pickle",
        "yaml": "load unsafe_load full_load",
    }.items()
    for name in names.split()
}


class Place(NamedTuple):
    """Where a node is: a step below another place, whose place is None at the root."""

    above: Place | None
    step: Node


def where(place: Place | None) -> str:
    """A place as text, `hyper_parameters.lr` or `callbacks[0]`; of a very long one the end."""
    steps: list[str] = []
    while place is not None and len(steps) < _SHOWN_STEPS:
        steps.append(_step(place.step))
        place = place.above
    return ("..." if place else "") + "".join(reversed(steps)).removeprefix(".")


def _step(key: Node) -> str:
    if isinstance(key, str):
        return f".{key[:_SHOWN_TEXT]}"
    if isinstance(key, bytes):
        return f"[{key[:_SHOWN_TEXT]!r}]"
    if isinstance(key, int) and key.bit_length() > 64:
        return "[...]"
    return f"[{key!r}]" if isinstance(key, ATOMS) else f"[{getattr(key, 'path', '...')}]"


def dotted(function: Node) -> str:
    """The path of a class or function, "" if it is no global.

    A class in a class is `getattr(Outer, "Inner")` in protocol 2; it is called `Outer.Inner` here.
    """
    names: list[str] = []
    while isinstance(function, Call) and function.path == "builtins.getattr":
        match function.args:
            case Tuple([inner, str() as name]) if len(names) < _LONGEST_CHAIN:
                names.append(name)
                function = inner
            case _:
                return ""
    return ".".join([function.path, *reversed(names)]) if isinstance(function, Global) else ""


def globals_of(root: Node) -> dict[str, str]:
    """Each class and function that unpickling would import, and where it is first named.

    The classes of storages, which are always torch's own, are not among them.
    """
    found: dict[str, str] = {}
    seen: set[int] = set()
    work: list[tuple[Node, Place | None]] = [(root, None)]
    while work:
        node, place = work.pop()
        if isinstance(node, ATOMS) or id(node) in seen:
            continue
        seen.add(id(node))
        if path := dotted(node):
            found.setdefault(path, where(place))
        else:
            work.extend(reversed(list(_below(node, place, seen))))
    return found


def _below(node: Node, place: Place | None, seen: set[int]) -> Iterator[tuple[Node, Place | None]]:
    """What a node holds and where; the parts an object is made of are where it is."""
    if isinstance(node, Call):
        yield node.function, place
        if isinstance(node.args, Tuple) and id(node.args) not in seen:
            seen.add(id(node.args))
            yield from ((argument, place) for argument in node.args.elements)
        yield node.kwargs, place
    if isinstance(node, List | Tuple | Call):
        for index, element in enumerate(node.elements):
            yield element, Place(place, index)
    if isinstance(node, Dict | Call):
        for key, value in node.pairs:
            yield key, Place(place, key)
            yield value, Place(place, key)
    if isinstance(node, Call):
        yield from ((state, place) for state in node.states)


def is_allowed(path: str) -> bool:
    """Whether `weights_only=True` imports this class or function, unasked."""
    return path in _ALLOWED


def is_suspicious(path: str) -> bool:
    """Whether this is a known way to run code while a file is loaded.

    What is not known as one may run code as well: only `is_allowed` is sure.
    """
    if path.startswith("copyreg."):
        return False  # copyreg.__newobj__ and its like only make objects of other classes
    names = path.split(".")
    return (
        names[0] in _MODULES
        or path in _RUNNING
        or path.startswith(_RUNNING_PACKAGES)
        or any(name in _INNER_MODULES for name in names[1:])
        or any(name.startswith("__") and name.endswith("__") for name in names[1:])
    )


_OLD_DTYPES = "Double Float Half BFloat16 Long Int Short Char Byte".split()
_ALLOWED = {
    "collections.OrderedDict",
    "collections.Counter",
    "builtins.set",
    "builtins.complex",
    "builtins.bytearray",
    "_codecs.encode",
    "torch.Size",
    "torch.Tensor",
    "torch.device",
    "torch.nn.parameter.Parameter",
    "torch.serialization._get_layout",
    "torch._tensor._rebuild_from_type_v2",
    *(f"torch._utils._rebuild_{name}" for name in _REBUILT),
    "torch.storage.TypedStorage",
    "torch.storage.UntypedStorage",
    *(f"torch.{name}" for name in [*DTYPES, *_QSCHEMES]),
    *(f"torch.{name}" for name in STORAGES if name != "UntypedStorage"),
    *(f"torch.{name}Tensor" for name in [*_OLD_DTYPES, "Bool"]),
    *(f"torch.sparse.{name}Tensor" for name in _OLD_DTYPES),
}
