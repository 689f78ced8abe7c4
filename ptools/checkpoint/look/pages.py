"""What `describe` and `diff_checkpoints` find as plain text, the verdict in the last line."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from ptools.checkpoint.look.entries import shape_text
from ptools.checkpoint.look.tree_page import clean, tree_lines
from ptools.console import counted
from ptools.files import human_bytes

if TYPE_CHECKING:
    from ptools.checkpoint.look.diff import CheckpointDiff, TensorDiff
    from ptools.checkpoint.look.info import Amount, CheckpointInfo, Remedy

_MOST_LINES = 8  # of one kind of finding
_MOST_DIFFERENCES = 40


def info_page(info: CheckpointInfo, everything: bool = False) -> str:
    """A page about one checkpoint; with `everything` nothing is folded."""
    sections = [
        _facts(_header(info)),
        tree_lines(info, everything),
        _facts(_findings(info)),
        [info_verdict(info)],
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def info_verdict(info: CheckpointInfo) -> str:
    """The whole in one line."""
    remedy = info.remedy
    danger = "RUNS CODE when loaded without weights_only=True; " if info.runs_code else ""
    if remedy.refusal:
        return f"{danger}fix-ckpt would not write it: {clean(remedy.refusal)}"
    if done := list(_done(remedy)):
        return f"{danger}fix-ckpt would: {_first(done)}"
    if info.weights_only is False:
        return "torch.load(weights_only=True) cannot read its pickle; fix-ckpt -o writes one it can"
    slack = sum(found.bytes for found in info.slack)
    more = f", {human_bytes(slack)} smaller with fix-ckpt --compact" if slack else ""
    return f"loads anywhere as it is{more}"


def _done(remedy: Remedy) -> Iterator[str]:
    if remedy.modules:
        yield f"take the state_dict out of {counted(len(remedy.modules), 'module')}"
    for renaming in remedy.renamed:
        new = f"{renaming.old} to {renaming.new}" if renaming.new else renaming.old
        yield f"rename {counted(renaming.count, 'name')} ({clean(new)})"
    if remedy.left_out:
        yield f"leave out {clean(', '.join(remedy.left_out[:3]))}"
    for (old, new), count in remedy.locations.items():
        yield f"move {counted(count, 'storage')} from {clean(old)} to {new}"
    dropped = sum(not change.became for change in remedy.changes)
    if converted := len(remedy.changes) - dropped:
        yield f"convert {counted(converted, 'object')}"
    if dropped:
        yield f"drop {counted(dropped, 'object')}"
    if remedy.format:
        yield f"write it as {remedy.format}"


def _header(info: CheckpointInfo) -> Iterator[tuple[str, str]]:
    files = f" in {len(info.files)} files" if len(info.files) > 1 else ""
    yield clean(info.path.name), f"{info.format}, {human_bytes(info.bytes)}{files}"
    yield "tensors", _amount(info.tensors)
    yield "dtypes", _amounts(info.dtypes)
    yield "devices", _amounts(info.locations)
    for container in info.containers:
        taken = ", taken by fix-ckpt" if container.taken and len(info.containers) > 1 else ""
        name = clean(".".join(container.keys)) or "the file itself"
        yield "weights", f"{name}: {_amount(container.tensors, 'tensor')}{taken}"
    if info.weights_only is not None:
        answers = ["yes" if answer else "no" for answer in (info.weights_only, info.mmap)]
        yield "loads with", f"weights_only=True: {answers[0]}, mmap=True: {answers[1]}"


def _findings(info: CheckpointInfo) -> Iterator[tuple[str, str]]:
    for found in info.runs_code:
        at = f" at {clean(found.where)}" if found.where else ""
        yield (
            "RUNS CODE",
            f"{clean(found.path)}{at}: do not load this file without weights_only=True",
        )
    refused = [found for found in info.globals if found.rule == "refused"]
    classes = [f"{found.path} at {found.where}" if found.where else found.path for found in refused]
    yield from _several("refused", classes, "by weights_only=True")
    yield from _several("module", list(info.remedy.modules))
    for container in info.containers:
        for removed, count in container.wrappers.items():
            where = f" in {'.'.join(container.keys)}" if container.keys else ""
            yield "wrapped", clean(f"{counted(count, 'name')} with {removed}{where}")
    for kind, text in (("tied", " = "), ("overlapping", " overlaps "), ("apart", " beside ")):
        groups = [_joined(shared.names, text) for shared in info.shared if shared.kind == kind]
        yield from _several("shared", groups)
    slack = [f"{_joined(found.names, ', ')}: {human_bytes(found.bytes)}" for found in info.slack]
    yield from _several("unseen", slack, "dragged along; --compact cuts it off")
    for note in info.notes:
        yield "note", clean(note)


def _by_front(names: Sequence[str]) -> list[str]:
    """How many names there are under each of their fronts."""
    fronts = Counter(".".join(name.split(".")[:2]) for name in names)
    return [f"{front}: {counted(count, 'tensor')}" for front, count in fronts.items()]


def _several(label: str, texts: Sequence[str], why: str = "") -> Iterator[tuple[str, str]]:
    for index, text in enumerate(texts[:_MOST_LINES]):
        yield label, clean(text) + (f" ({why})" if why and not index else "")
    if len(texts) > _MOST_LINES:
        yield label, f"and {len(texts) - _MOST_LINES:,} more"


def _facts(facts: Iterable[tuple[str, str]]) -> list[str]:
    facts = list(facts)
    width = min(max((len(label) for label, _ in facts), default=0), 40)
    return [f"{label:{width}}  {text}" for label, text in facts]


def _joined(names: Sequence[str], between: str) -> str:
    more = f" (and {len(names) - 3} more)" if len(names) > 3 else ""
    return between.join(names[:3]) + more


def _amount(amount: Amount, noun: str = "") -> str:
    count = counted(amount.count, noun) if noun else f"{amount.count:,}"
    return f"{count}, {human_bytes(amount.bytes)}"


def _amounts(amounts: dict[str, Amount]) -> str:
    texts = [
        f"{clean(name)} ({_amount(amount)})" if len(amounts) > 1 else clean(name)
        for name, amount in amounts.items()
    ]
    return _first(texts)


def _first(texts: Sequence[str]) -> str:
    more = f", and {len(texts) - _MOST_LINES:,} more" if len(texts) > _MOST_LINES else ""
    return ", ".join(texts[:_MOST_LINES]) + more


def diff_page(diff: CheckpointDiff) -> str:
    """A page about what two checkpoints differ in."""
    sections = [_facts(_ways(diff)), _table(diff), _facts(_around(diff)), [diff_verdict(diff)]]
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def diff_verdict(diff: CheckpointDiff) -> str:
    """The whole in one line."""
    remarks = [f"with {clean(diff.rule)}"] if diff.rule else []
    if diff.devices:
        remarks.append("on other devices")
    if diff.equal:
        return ", ".join([f"equal: {counted(diff.tensors, 'tensor')}, bit for bit", *remarks])
    parts = []
    if diff.different:
        parts.append(
            f"{len(diff.different):,} of {counted(diff.tensors, 'tensor')}{_largest(diff)}"
        )
    for path, names in ((diff.first, diff.only_first), (diff.second, diff.only_second)):
        if names:
            parts.append(f"{counted(len(names), 'tensor')} only in {clean(str(path))}")
    if diff.entries:
        parts.append(counted(len(diff.entries), "other value"))
    equal = "" if diff.different else f"{counted(diff.tensors, 'tensor')} equal, but "
    return f"differ: {equal}{', '.join(parts + remarks)}"


def _largest(diff: CheckpointDiff) -> str:
    found = [(each.values.max_abs, each.name) for each in diff.different if each.values]
    known = [(size, name) for size, name in found if size is not None]
    if not known:
        return ""
    size, name = max(known)
    return f", the largest by {size:.3g} ({clean(name)})"


def _ways(diff: CheckpointDiff) -> Iterator[tuple[str, str]]:
    first, second = clean(str(diff.first)), clean(str(diff.second))
    yield "first", first + (f": {clean(diff.containers[0])}" if diff.containers else "")
    yield "second", second + (f": {clean(diff.containers[1])}" if diff.containers else "")
    if diff.containers:
        yield "compared", "the weights alone, for they are in different places"
    if diff.rule:
        yield "names", f"{clean(diff.rule)}, of the first"


def _table(diff: CheckpointDiff) -> list[str]:
    """The tensors that differ, a line each."""
    if not diff.different:
        return []
    rows: list[tuple[str, ...]] = [("tensor", "shape", "dtype", "differing", "max abs", "relative")]
    rows += [_row(each) for each in diff.different[:_MOST_DIFFERENCES]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    if (more := len(diff.different) - _MOST_DIFFERENCES) > 0:
        lines.append(f"... {counted(more, 'tensor')} more")
    return lines


def _row(each: TensorDiff) -> tuple[str, ...]:
    (dtype, shape), (other_dtype, other_shape) = each.first, each.second
    texts = shape_text(shape), shape_text(other_shape)
    return (
        clean(each.name),
        texts[0] if shape == other_shape else " / ".join(texts),
        clean(dtype if dtype == other_dtype else f"{dtype} / {other_dtype}"),
        *_numbers(each, math.prod(shape)),
    )


def _numbers(each: TensorDiff, numel: int) -> tuple[str, str, str]:
    values = each.values
    if values is None:
        same = each.first[1] == each.second[1] and each.first[0] and each.second[0]
        return "none" if same else "", "", ""
    infinite = f", {values.not_finite:,} not finite" if values.not_finite else ""
    return (
        f"{values.count:,} of {numel:,}{infinite}",
        "" if values.max_abs is None else f"{values.max_abs:.3g}",
        "" if values.relative is None else f"{values.relative:.2g}",
    )


def _around(diff: CheckpointDiff) -> Iterator[tuple[str, str]]:
    for label, names in (("only first", diff.only_first), ("only second", diff.only_second)):
        yield from _several(label, names if len(names) <= _MOST_LINES else _by_front(names))
    for (old, new), count in diff.devices.items():
        yield "devices", f"{counted(count, 'tensor')}: {clean(old)} / {clean(new)}"
    yield from _several("shared", diff.sharing)
    texts = [
        f"{entry.name}: {entry.first or '-'} / {entry.second or '-'}" for entry in diff.entries
    ]
    yield from _several("value", texts)
    yield from _several("not compared", diff.not_compared)
