"""TorchScript archives, as torch.jit.save writes them: `data.pkl`, `code/` and `constants.pkl`.

The pickle holds parameters, buffers, submodules and plain attributes of a module all alike; which
is which, the code of its class says (torch/csrc/jit/serialization/python_print.cpp in torch's
source).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ptools.checkpoint.checkpoint import Checkpoint
from ptools.checkpoint.data.archive import read_archive, whole
from ptools.checkpoint.data.content import Content
from ptools.checkpoint.errors import CorruptCheckpoint, NotACheckpoint
from ptools.checkpoint.formats.torch_zip import LARGEST_PICKLE, read_records, storage_reader
from ptools.checkpoint.pickles.modules import Collector, Parts
from ptools.checkpoint.pickles.nodes import Call, Node, Tuple, mapping, storages
from ptools.checkpoint.pickles.tensors import ordered_dict, tensor_of
from ptools.checkpoint.pickles.unpickle import unpickle

_LARGEST_CODE = 1 << 27  # bytes a file
_SHOWN = 3  # lines of code in a note
_CLASS = re.compile(r"class ([^\s(:]+)(\(Module\))?")
_PARAMETERS = re.compile(r"  __parameters__ = \[(.*)\]")
_BUFFERS = re.compile(r"  __buffers__ = \[(.*)\]")
_TEXT = re.compile(r'"([^"]*)"')
_CONSTANT = re.compile(r"CONSTANTS\.c(\d+)\b")


@dataclass(slots=True)
class _Class:
    """Which attributes of a module are which; `buffers` is None in files of torch before 1.5.

    `makes_itself` tells that the pickle holds not the attributes, but what `__setstate__` takes.
    """

    parameters: list[str]
    buffers: list[str] | None = None
    makes_itself: bool = False

    def read(self, line: str) -> None:
        """Take what a line of the class's body says of that."""
        if match := _PARAMETERS.match(line):
            self.parameters = _TEXT.findall(match[1])
        elif match := _BUFFERS.match(line):
            self.buffers = _TEXT.findall(match[1])
        elif line.startswith("  def __setstate__("):
            self.makes_itself = True


def read_torchscript(path: Path) -> Checkpoint:
    """Read what torch.jit.save has written, as the state_dict of its module.

    Raises:
        CorruptCheckpoint: the file is damaged, or code and pickle do not fit.
        NotACheckpoint: it is another kind of archive.
    """
    records = read_archive(path)
    if "data.pkl" not in records:
        raise NotACheckpoint(
            f"{path} has no data.pkl: it is no TorchScript archive, or one from before torch 1.4",
            "load it with torch.jit.load and save it again with torch.jit.save",
        )
    code = _Code(_constants_on_cuda(records))
    for name in records:
        if name.startswith("code/") and name.endswith(".py"):
            code.read(name, whole(records[name], _LARGEST_CODE).decode("utf-8", "replace"))
    module, _ = read_records(records)
    modules = _Modules(code.classes)
    tensors = Collector().collect(module, modules.parts)
    checkpoint = Checkpoint(path, "TorchScript", ordered_dict(list(tensors.items())), (path,))
    checkpoint.notes += [*code.notes(), *modules.notes()]
    if not tensors and any(name.startswith("constants/") for name in records):
        checkpoint.notes.append(
            "all its weights are nameless constants of its code, as torch.jit.freeze leaves them"
        )
    return checkpoint


def _constants_on_cuda(records: Mapping[str, Content]) -> set[int]:
    """The numbers of the code's constants that are on CUDA."""
    if "constants.pkl" not in records:
        return set()
    reader = storage_reader(lambda key: records.get(f"constants/{key}"))
    constants = unpickle(whole(records["constants.pkl"], LARGEST_PICKLE), reader)
    if not isinstance(constants, Tuple):
        raise CorruptCheckpoint("constants.pkl holds no constants")
    return {
        index
        for index, constant in enumerate(constants.elements)
        if any(str(storage.location).startswith("cuda") for storage in storages(constant))
    }


class _Code:
    """What the code tells: the classes of modules by their full names, and where it says CUDA."""

    def __init__(self, constants_on_cuda: set[int]) -> None:
        self.classes: dict[str, _Class | None] = {}  # None: a class, but no module
        self._on_cuda = constants_on_cuda
        self._cuda_lines: list[str] = []
        self._constant_lines: list[str] = []

    def read(self, record: str, text: str) -> None:
        """Read one file; `code/__torch__/a.py` holds the classes of `__torch__.a`."""
        package = record.removeprefix("code/").removesuffix(".py").replace("/", ".")
        current: _Class | None = None
        for number, line in enumerate(text.splitlines(), start=1):
            if match := _CLASS.match(line):
                current = _Class([]) if match[2] else None
                self.classes[f"{package}.{match[1]}"] = current
            elif current:
                current.read(line)
            if 'torch.device("cuda' in line:
                self._cuda_lines.append(f"{record}, line {number}")
            if any(int(index) in self._on_cuda for index in _CONSTANT.findall(line)):
                self._constant_lines.append(f"{record}, line {number}")

    def notes(self) -> list[str]:
        return [
            f"{what} stays on CUDA whatever becomes of the weights: {_shown(lines)}"
            for what, lines in (
                ("its code", self._cuda_lines),
                ("a constant of its code", self._constant_lines),
            )
            if lines
        ]


class _Modules:
    """Reads the objects of the pickle by what the code says of their classes."""

    def __init__(self, classes: Mapping[str, _Class | None]) -> None:
        self._classes = classes
        self._by_code: list[str] = []
        self._guessed: list[str] = []

    def parts(self, name: str, module: Node) -> Parts:
        """What a module holds, in the order of `torch.jit.load(...).state_dict()`."""
        cls = self._class(module)
        if cls is None:
            raise CorruptCheckpoint(f"{name or 'the root'} of the TorchScript archive is no module")
        state = mapping(module.states[-1]) if module.states else None
        if state is None or cls.makes_itself:
            self._by_code.append(name)
            return Parts([], [])
        attributes = [(own, value) for own, value in state if isinstance(own, str)]
        buffers = cls.buffers
        if buffers is None:
            self._guessed.append(name)
            buffers = [
                own for own, value in attributes if tensor_of(value) and own not in cls.parameters
            ]
        return Parts(
            [
                *((own, value) for own, value in attributes if own in cls.parameters),
                *((own, value) for own, value in attributes if own in buffers),
            ],
            [(own, value) for own, value in attributes if self._class(value)],
        )

    def _class(self, node: Node) -> _Class | None:
        """The class of a module; None for all else."""
        path = node.path if isinstance(node, Call) else ""
        if not path.startswith("__torch__.") or path.startswith("__torch__.torch.classes."):
            return None
        if path not in self._classes:
            raise CorruptCheckpoint(f"the archive lacks the code of {path}")
        return self._classes[path]

    def notes(self) -> list[str]:
        return [
            f"{_shown([name or 'the model' for name in names])}: {says}"
            for names, says in (
                (self._by_code, "restored by its own code, which was not run: left out"),
                (self._guessed, "from torch before 1.5: all its tensors were taken as buffers"),
            )
            if names
        ]


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return "; ".join(names[:_SHOWN]) + more
