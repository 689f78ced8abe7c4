"""The tree of a checkpoint as aligned lines, what is alike folded into one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from ptools.checkpoint.look.entries import Entry, TensorFacts, shape_text
from ptools.console import counted, escaped
from ptools.files import human_bytes

if TYPE_CHECKING:
    from ptools.checkpoint.look.info import CheckpointInfo

_MOST = 40  # lines on one level
_HEAD, _TAIL = 24, 8  # that remain of more
_ALIKE = 4  # entries in a row that become one line
_INLINE = 2  # levels from which what holds no tensors is one line
_ROOM = 90  # characters of such a line
_WIDEST = 60  # columns of names
_LONGEST = 160  # characters of any text


@dataclass(frozen=True)
class _Line:
    label: str
    cells: tuple[str, ...] = ()  # of a tensor
    text: str = ""


def tree_lines(info: CheckpointInfo, everything: bool) -> list[str]:
    """The tree, a line an entry; tensors with shape, dtype, device, size and what is special."""
    page = _Tree(_flags(info), everything)
    lines = list(page.below(info.root, 0)) or [_Line("", text=page.summary(info.root))]
    width = min(max(len(line.label) for line in lines), _WIDEST)
    tables = [line.cells for line in lines if line.cells]
    widths = [max(map(len, column)) for column in zip(*tables, strict=True)]
    return [_aligned(line, width, widths) for line in lines]


def clean(text: str) -> str:
    """A text of the file as a terminal may show it, cut to the length of a line."""
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]}...{text[-_LONGEST // 2 :]}"
    return escaped(text)


def _aligned(line: _Line, width: int, widths: Sequence[int]) -> str:
    cells = [f"{cell:{size}}" for cell, size in zip(line.cells, widths, strict=False)]
    if cells:
        cells[3] = f"{line.cells[3]:>{widths[3]}}"  # the size
    return "  ".join([f"{line.label:{width}}", *cells, line.text]).rstrip()


class _Tree:
    def __init__(self, flags: dict[str, str], everything: bool) -> None:
        self.flags = flags
        self.everything = everything

    def below(self, entry: Entry, level: int) -> Iterator[_Line]:
        """The lines of what an entry holds."""
        groups = [[each] for each in entry.entries]
        if not self.everything:
            groups = self.folded(entry.entries)
        hidden: list[list[Entry]] = []
        if len(groups) > _MOST and not self.everything:
            hidden = groups[_HEAD:-_TAIL]
            groups = [*groups[:_HEAD], [], *groups[-_TAIL:]]
        for group in groups:
            if group:
                yield from self.group(group, level)
            else:
                rest = [each for entries in hidden for each in entries]
                yield _Line("  " * level + "...", text=f"{_size(rest)} more; --json lists them")

    def folded(self, entries: Sequence[Entry]) -> list[list[Entry]]:
        """Entries in a row that are alike; of many tensors, those that differ in an index only."""
        tensors = [entry for entry in entries if entry.tensor is not None]
        if len(tensors) > _MOST:
            groups: dict[object, list[Entry]] = {}
            for index, entry in enumerate(entries):
                key = self.pattern(entry) if entry.tensor else index
                groups.setdefault(key, []).append(entry)
            return list(groups.values())
        folded: list[list[Entry]] = []
        for _, run in groupby(entries, self.likeness):
            alike = list(run)
            folded += [alike] if len(alike) >= _ALIKE else [[entry] for entry in alike]
        return folded

    def pattern(self, entry: Entry) -> object:
        return (_pattern(entry.key), *self.cells(entry.tensor)) if entry.tensor else entry.key

    def likeness(self, entry: Entry) -> object:
        if entry.kind == "value" or (entry.tensor and not entry.key.isdecimal()):
            return entry.key
        inside = tuple(below.key for below in entry.entries)
        shape = entry.tensor.shape if entry.tensor else ()
        return entry.kind, entry.text, inside, shape

    def group(self, group: Sequence[Entry], level: int) -> Iterator[_Line]:
        first, indent = group[0], "  " * level
        label = indent + clean(_range([entry.key for entry in group]))
        if first.tensor is not None:
            cells = self.cells(first.tensor)
            if len(group) > 1:
                cells = (*cells[:4], f"x{len(group)} {cells[4]}".rstrip())
            yield _Line(label, cells)
        elif len(group) > 1:
            inside = ", ".join(clean(entry.key) for entry in first.entries)
            yield _Line(label, text=f"each {_cut(inside)}: {_size(group)}")
        else:
            yield _Line(label, text=self.summary(first, level))
            if not self.is_inline(first, level):
                yield from self.below(first, level + 1)

    def is_inline(self, entry: Entry, level: int) -> bool:
        return level >= _INLINE and not self.everything and next(entry.tensors(), None) is None

    def summary(self, entry: Entry, level: int = 0) -> str:
        """What stands beside the name of what is no tensor."""
        if self.is_inline(entry, level):
            return _inline(entry)
        size = _size([entry]) if next(entry.tensors(), None) else ""
        return "  ".join(part for part in (clean(entry.text), size) if part)

    def cells(self, tensor: TensorFacts) -> tuple[str, ...]:
        flags = [self.flags.get(tensor.name, ""), _order(tensor)]
        return (
            shape_text(tensor.shape) if tensor.dtype else "",
            clean(tensor.dtype),
            clean(tensor.location),
            human_bytes(tensor.bytes) if tensor.layout in ("strided", "quantized") else "",
            ", ".join(flag for flag in flags if flag),
        )


def _flags(info: CheckpointInfo) -> dict[str, str]:
    """What a tensor has to do with others."""
    flags: dict[str, list[str]] = {}
    words = {"tied": "tied to", "overlapping": "overlaps", "apart": "in one storage with"}
    for shared in info.shared:
        for name in shared.names[1:]:
            flags.setdefault(name, []).append(f"{words[shared.kind]} {clean(shared.names[0])}")
    for slack in info.slack:
        flags.setdefault(slack.names[0], []).append(f"drags {human_bytes(slack.bytes)}")
    return {name: ", ".join(texts) for name, texts in flags.items()}


def _order(tensor: TensorFacts) -> str:
    """How its elements lie, where that is not in the order of its dimensions."""
    if tensor.layout != "strided":
        return tensor.layout
    if tensor.stride is None:
        return ""
    if len(tensor.stride) == 4 and tensor.stride[1] == 1:
        return "channels_last"
    return "transposed" if tensor.stride == tuple(sorted(tensor.stride)) else "strided"


def _pattern(name: str) -> str:
    return ".".join("#" if part.isdecimal() else part for part in name.split("."))


def _range(names: Sequence[str]) -> str:
    """`h.0-11.weight`; names of one pattern, or the first and the last of others."""
    if len(names) == 1:
        return names[0]
    split = [name.split(".") for name in names]
    if len({_pattern(name) for name in names}) > 1:
        return f"{names[0]} ... {names[-1]}"
    columns = (list(dict.fromkeys(column)) for column in zip(*split, strict=True))
    return ".".join(_indices(column) for column in columns)


def _indices(column: Sequence[str]) -> str:
    if len(column) == 1:
        return column[0]
    numbers = sorted(map(int, column))
    is_run = numbers == list(range(numbers[0], numbers[-1] + 1))
    return f"{numbers[0]}-{numbers[-1]}" if is_run else ",".join(map(str, numbers[:8]))


def _inline(entry: Entry) -> str:
    parts: list[str] = []
    for below in entry.entries:
        value = f"{{{_inline(below)}}}" if below.entries else below.text
        parts.append(clean(f"{below.key} {value}" if entry.kind != "list" else value))
        if sum(map(len, parts)) > _ROOM:
            break
    text = ", ".join(parts) or clean(entry.text)
    return _cut(f"{clean(entry.text)}: {text}" if entry.kind == "object" and parts else text)


def _cut(text: str) -> str:
    return text if len(text) <= _ROOM else f"{text[:_ROOM]}..."


def _size(entries: Sequence[Entry]) -> str:
    tensors = [tensor for entry in entries for tensor in entry.tensors()]
    size = human_bytes(sum(tensor.bytes for tensor in tensors))
    if not tensors:
        return counted(len(entries), "entry", "entries")
    return f"{counted(len(tensors), 'tensor')}, {size}"
