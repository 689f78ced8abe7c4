"""The callables of a dataset that are stages of their own: transforms by name, known readers."""

import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from ptools.loader_profile.probe import Timed, timed

# Where a call reads or decodes; "decode" where it does both: what it waits is the storage's.
READERS = (
    ("PIL.Image", "open", "decode"),
    ("cv2", "imread", "decode"),
    ("cv2", "imdecode", "decode"),
    ("torchvision.io", "read_image", "decode"),
    ("torchvision.io", "decode_image", "decode"),
    ("torchvision.io", "decode_jpeg", "decode"),
    ("torchvision.io", "decode_png", "decode"),
    ("torchvision.io", "read_file", "storage"),
    ("imageio", "imread", "decode"),
    ("imageio.v2", "imread", "decode"),
    ("imageio.v3", "imread", "decode"),
    ("skimage.io", "imread", "decode"),
    ("tifffile", "imread", "decode"),
    ("soundfile", "read", "decode"),
    ("torchaudio", "load", "decode"),
    ("librosa", "load", "decode"),
    ("numpy", "load", "storage"),
    ("numpy", "fromfile", "storage"),
    ("torch", "load", "storage"),
    ("pandas", "read_csv", "decode"),
    ("pandas", "read_parquet", "decode"),
)
_NOT_TRANSFORMS = ("load", "read", "open", "collate", "sampler", "generator")
_CHAINS = ("Compose", "Sequential", "StandardTransform")
_DEPTH = 4


def instrument_readers() -> None:
    """Have the readers and decoders that are imported count their time, for good.

    To be called again when more may have been imported.
    """
    if "PIL.Image" in sys.modules:  # which imports the rest of Pillow only when it opens an image
        for reader in _with_subclasses(importlib.import_module("PIL.ImageFile").ImageFile):
            if "load" in vars(reader):
                _time_lazy_load(reader)
    for module, name, kind in READERS:
        if module in sys.modules:
            _replace(sys.modules[module], name, kind)


def instrument(dataset: Any, transforms: bool = True) -> None:
    """Have the stages of a dataset count their time, in this process, for good."""
    instrument_readers()
    if transforms:
        names: dict[str, int] = {}
        instead: dict[int, Timed] = {}
        for holder, key, function in [*_of_dataset(dataset, 0), *_of_module(dataset)]:
            if id(function) not in instead:  # one transform may have several places
                stage = _unique(_name(function), names), "transform"
                instead[id(function)] = Timed(stage, function)
            _set(holder, key, instead[id(function)])


def _replace(module: ModuleType, name: str, kind: str) -> None:
    """Wrap a function where it is defined and where somebody has imported it by name."""
    function = getattr(module, name, None)
    if function is None or type(function) is Timed:
        return
    instead = Timed((f"{module.__name__.partition('.')[0]}.{name}", kind), function)
    for other in [*sys.modules.values()]:
        names = getattr(other, "__dict__", {})
        for key in [key for key, value in names.items() if value is function]:
            setattr(other, key, instead)


def _with_subclasses(kind: type) -> Iterator[type]:
    yield kind
    subclasses: list[type] = kind.__subclasses__()
    for one in subclasses:
        yield from _with_subclasses(one)


def _time_lazy_load(image_file: Any) -> None:
    """Pillow decodes when the pixels are wanted, and asks again whenever they are."""
    load = image_file.load
    if hasattr(load, "__wrapped__"):
        return

    @functools.wraps(load)
    def timed_load(image: Any) -> Any:
        if vars(image).get("_timed_frame") == image.tell():
            return load(image)
        image._timed_frame = image.tell()
        return timed(("PIL.load", "decode"), load, image)

    image_file.load = timed_load


Place = tuple[Any, Any, Callable[..., Any]]


def _of_dataset(dataset: Any, depth: int) -> Iterator[Place]:
    """Holder, key and callable of each transform that a dataset holds, and one inside it."""
    if depth > _DEPTH or not hasattr(dataset, "__dict__"):
        return
    for key, value in list(vars(dataset).items()):
        if _is_chain(value):
            yield from _of_chain(value, depth)
        elif key in ("dataset", "datasets"):
            for inner in value if isinstance(value, (list, tuple)) else [value]:
                yield from _of_dataset(inner, depth + 1)
        elif _is_transform(key, value):
            yield dataset, key, value


def _of_chain(chain: Any, depth: int) -> Iterator[Place]:
    """The parts of a Compose or the like."""
    if depth > _DEPTH:
        return
    parts = getattr(chain, "transforms", None)
    if parts is None and hasattr(chain, "_modules"):
        parts = chain._modules
    if parts is None:  # torchvision's pair of a transform and a target_transform
        yield from _of_dataset(chain, depth + 1)
        return
    if isinstance(parts, tuple):
        parts = chain.transforms = list(parts)
    holder = parts._modules if hasattr(parts, "_modules") else parts
    for key, part in list(holder.items() if isinstance(holder, dict) else enumerate(holder)):
        if _is_chain(part):
            yield from _of_chain(part, depth + 1)
        elif callable(part):
            yield holder, key, part


def _of_module(dataset: Any) -> Iterator[Place]:
    """The parts of a Compose that stands beside the dataset's class."""
    module = sys.modules.get(type(dataset).__module__)
    if module is None or "site-packages" in Path(getattr(module, "__file__", None) or "").parts:
        return
    for value in list(vars(module).values()):
        if _is_chain(value):
            yield from _of_chain(value, 0)


def _is_chain(value: Any) -> bool:
    return type(value).__name__.endswith(_CHAINS)


def _is_transform(key: str, value: Any) -> bool:
    if not callable(value) or isinstance(value, type):
        return False
    return not any(word in key.lower() for word in _NOT_TRANSFORMS)


def _set(holder: Any, key: Any, value: Any) -> None:
    if isinstance(holder, (list, dict)):
        holder[key] = value
    elif isinstance(getattr(holder, "_modules", None), dict) and key in holder._modules:
        holder._modules[key] = value
    else:
        vars(holder)[key] = value


def _name(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    if getattr(function, "__name__", None) == "<lambda>" and isinstance(function, FunctionType):
        code = function.__code__
        return f"lambda ({Path(code.co_filename).name}:{code.co_firstlineno})"
    return getattr(function, "__name__", None) or type(function).__name__


def _unique(name: str, names: dict[str, int]) -> str:
    names[name] = names.get(name, 0) + 1
    return name if names[name] == 1 else f"{name} #{names[name]}"
