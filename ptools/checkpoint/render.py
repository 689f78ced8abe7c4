"""A `FixReport` as a page of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ptools.checkpoint.look.entries import shape_text
from ptools.checkpoint.names.matching import Match
from ptools.checkpoint.pickles.globals import is_suspicious
from ptools.checkpoint.pickles.plain import Change
from ptools.checkpoint.report import FixReport
from ptools.console import counted, escaped
from ptools.files import human_bytes

_WIDTH = 11  # of the left column
_SHOWN = 5  # entries of a list


def fix_page(report: FixReport) -> str:
    """The report, one fact a line, with the verdict last."""
    lines = [f"{title:<{_WIDTH}} {escaped(text)}" for title, text in _rows(report)]
    return "\n".join([*lines, "", escaped(verdict(report))]) + "\n"


def verdict(report: FixReport) -> str:
    """What came of it, in one line."""
    loads = "loads with weights_only=True"
    if "safetensors" in report.output_format:
        loads = "loads with safetensors"
    if report.match is not None:
        loads = _fit(report.match)
    if not report.anything and not report.outputs:
        fits = f", {loads}" if report.match is not None else ""
        return f"{report.source}: nothing to fix{fits}"
    if not report.outputs:
        return f"{report.source}: nothing was written (--dry-run); the result {loads}"
    first = report.outputs[0] if len(report.outputs) == 1 else report.outputs[0].parent
    return f"{first}: {human_bytes(report.output_bytes)}, {loads}"


def _fit(match: Match) -> str:
    if match.complete and not match.unexpected:
        return "loads strictly into the model"
    if match.complete:
        return f"fills the model, with {counted(len(match.unexpected), 'tensor')} left over"
    wrong = counted(len(match.missing) + len(match.mismatched), "tensor")
    return f"does not load into the model: {wrong} missing or of another shape"


def _rows(report: FixReport) -> Iterator[tuple[str, str]]:
    yield "checkpoint", f"{report.source}, {report.format}, {human_bytes(report.source_bytes)}"
    yield from _titled("module", [f"{module} -> its state_dict" for module in report.modules])
    if report.taken is not None:
        others = [name for name in report.containers if name != report.taken]
        beside = f" (there is also {', '.join(others)})" if others else ""
        yield "weights", f"{report.taken}: {counted(report.tensors, 'tensor')}{beside}"
    yield from _titled("names", [_renaming(r.old, r.new, r.count) for r in report.renamed])
    if report.match is not None:
        yield from _titled("model", list(_match(report.match)), limit=None)
    yield from _titled("location", _storages(report.locations))
    yield from _titled("dtype", _storages(report.dtypes))
    if report.saved_bytes:
        yield "compact", f"{human_bytes(report.saved_bytes)} cut off, which no tensor sees"
    converted = [f"{c.where or 'root'}: {c.what} -> {c.became}" for c in report.changes if c.became]
    yield from _titled("converted", converted)
    dropped = [_dropped(change) for change in report.changes if not change.became]
    yield from _titled("dropped", dropped)
    yield from _titled("left out", report.left_out)
    yield from _titled("shared", [f"{name} is {other}" for name, other in report.aliases.items()])
    yield from _titled("note", report.notes, limit=None)
    yield from _checks(report)
    if report.outputs or report.anything:
        yield "load it", report.load


def _dropped(change: Change) -> str:
    danger = ", which RUNS CODE when it is unpickled" if is_suspicious(change.what) else ""
    return f"{change.where or 'root'}: {change.what}{danger}"


def _renaming(old: str, new: str, count: int) -> str:
    if not old:
        return f"{new} put before {count:,}"
    return f"{old} replaced by {new} in {count:,}" if new else f"{old} removed from {count:,}"


def _storages(changed: Mapping[tuple[str, str], int]) -> list[str]:
    return [f"{old} -> {new}: {counted(n, 'storage')}" for (old, new), n in changed.items()]


def _match(match: Match) -> Iterator[str]:
    whole = match.matched + len(match.missing) + len(match.mismatched)
    how = "under the same names" if match.rule == "nothing" else match.rule
    yield f"{match.matched:,} of its {whole:,} tensors are there ({how})"
    for title, names in (("missing", match.missing), ("unexpected", match.unexpected)):
        for name in names[:_SHOWN]:
            near = f"  (near: {match.near[name]})" if name in match.near else ""
            yield f"{title} {name}{near}"
        if len(names) > _SHOWN:
            yield f"{title} {len(names) - _SHOWN:,} more"
    for name, ours, theirs in match.mismatched[:_SHOWN]:
        yield f"differs {name}: {shape_text(ours)} here, {shape_text(theirs)} in the model"
    if len(match.mismatched) > _SHOWN:
        yield f"differs {len(match.mismatched) - _SHOWN:,} more"


def _checks(report: FixReport) -> Iterator[tuple[str, str]]:
    checked = report.checked
    if checked.sources:
        amount = human_bytes(checked.source_bytes)
        yield "checksums", f"{counted(checked.sources, 'record')} of the source verified ({amount})"
    elif report.outputs == (report.source,) and not checked.output_bytes:
        yield "checksums", "not verified: the weights were not touched"
    elif report.outputs:
        yield "checksums", f"none to verify: the source ({report.format}) has none"
    if checked.output_bytes:
        yield "", f"{human_bytes(checked.output_bytes)} read back and compared"


def _titled(
    title: str, texts: Sequence[str], limit: int | None = _SHOWN
) -> Iterator[tuple[str, str]]:
    """A row for each text, the title beside the first."""
    shown = texts[:limit]
    for index, text in enumerate(shown):
        yield ("" if index else title), text
    if len(texts) > len(shown):
        yield "", f"... {len(texts) - len(shown):,} more"
