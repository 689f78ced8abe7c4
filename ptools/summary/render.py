"""A `Summary` on the screen: the table, the totals, and the verdict as the last line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from ptools.files import human_bytes
from ptools.summary.report import Summary, TrainingMemory
from ptools.summary.table import Table, human_count, table_of

_BAR = 10  # cells
_UNBOUNDED = 10_000  # columns


# What a terminal that is too narrow does without, one after the other.
_DISPENSABLE = ("bars", "output", "backward", "share")


def render(summary: Summary, table: Table | None = None) -> RenderableType:
    """The table (by default that of `table_of`), totals, what is missing, and the verdict."""
    table = table or table_of(summary)
    note = Text(f"{table.note}\n" if table.note else "", style="dim")
    return Group(TableView(table), note, _facts(summary), "", Text(verdict(summary), style="bold"))


class TableView:
    """A table as wide as there is room for; what it had to leave out stands below it."""

    def __init__(self, table: Table) -> None:
        self.table = table

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement.get(console, options, _rich_table(self.table, (), ascii_only=False))

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        for count in range(len(_DISPENSABLE) + 1):
            left_out = _DISPENSABLE[:count]
            rich = _rich_table(self.table, left_out, options.ascii_only)
            wanted = console.measure(rich, options=options.update(width=_UNBOUNDED)).maximum
            if wanted <= options.max_width:
                break
        yield rich
        if missing := [name for name in left_out if name in self.table.columns]:
            yield Text(f"no room here for: {', '.join(missing)}", style="dim")


def _rich_table(table: Table, left_out: Sequence[str], ascii_only: bool) -> RichTable:
    rich = RichTable(box=None, pad_edge=False, header_style="bold")
    shown = [i for i, name in enumerate(table.columns) if name not in left_out]
    for i in shown:
        left = table.columns[i] in Table.LEFT
        justify: Literal["left", "right"] = "left" if left else "right"
        rich.add_column(table.columns[i], justify=justify, no_wrap=not left, overflow="fold")
    with_share = any(table.shares) and "share" not in left_out
    if with_share:
        rich.add_column("share", no_wrap=True)
    for row, share, dim in zip(table.rows, table.shares, table.dim, strict=True):
        cells = [Text(row[i]) for i in shown]
        if with_share:
            cells.append(_bar(share, "bars" not in left_out, ascii_only))
        rich.add_row(*cells, style="dim" if dim else None)
    return rich


def _bar(share: float, drawn: bool, ascii_only: bool) -> Text:
    """A bar for a part of the whole, in plain ASCII where the terminal has no more."""
    cells = round(share * _BAR) if drawn else 0
    bar = ("#" if ascii_only else "█") * cells
    text = f"{bar:{_BAR if drawn else 0}}{share:7.1%}" if share else ""
    return Text(text, style="cyan")


def _facts(summary: Summary) -> RichTable:
    """Totals and remarks, each with its name before it."""
    grid = RichTable.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, style, text in _lines(summary):
        grid.add_row(Text(name, style=style), Text(text))
    return grid


def _lines(summary: Summary) -> Iterator[tuple[str, str, str]]:
    yield "parameters", "bold", _parameters(summary)
    if summary.macs is not None:
        yield "forward", "bold", _forward(summary)
    if summary.backward_macs is not None:
        yield "backward", "bold", human_count(summary.backward_macs, "MACs")
    if summary.memory is not None:
        for line in _memory(summary.memory):
            yield "training", "bold", line
        for operation in summary.memory.hidden:
            yield "NOT COUNTED", "bold yellow", f"workspace of {operation}: the real peak is higher"
    for entry in summary.not_counted:
        where = f", first in {entry.layer}" if entry.layer else ""
        text = f"{entry.operation} x{entry.calls:,}{where}: its cost is in no total above"
        yield "NOT COUNTED", "bold yellow", text
    for attempt in summary.attempts:
        where = f" ({attempt.where})" if attempt.where else ""
        yield f"not on {attempt.rung}", "yellow", f"{attempt.reason}{where}"
    for advice in summary.advice:
        yield "advice", "bold magenta", f"{', '.join(advice.layers)}: {advice.cost}"
        yield "", "", advice.change
    for note in summary.notes:
        yield "note", "bold yellow", note


def verdict(summary: Summary) -> str:
    """The whole in one line."""
    text = f"{summary.model}: {human_count(summary.parameters)} parameters"
    if summary.macs is None:
        return f"{text}; not run, so no shapes and no MACs"
    more = "at least " if summary.not_counted or summary.stopped else ""
    text += f", {more}{human_count(summary.macs, 'MACs')} forward"
    if summary.stopped:
        return f"{text}; INCOMPLETE: stopped in {summary.stopped.where or 'the model'}"
    if summary.memory is not None:
        text += f", {_training_verdict(summary.memory)}"
    if summary.input_source == "guessed":
        text += f"; input guessed from {summary.input_origin}, pass --input to be sure"
    return text


def _parameters(summary: Summary) -> str:
    dtypes = ", ".join(
        dtype if len(summary.dtypes) == 1 else f"{human_count(count)} {dtype}"
        for dtype, count in summary.dtypes.items()
    )
    frozen = summary.parameters - summary.trainable
    trainable = f"{summary.trainable:,} trainable, {frozen:,} frozen" if frozen else "all trainable"
    buffers = f"; {summary.buffers:,} in buffers" if summary.buffers else ""
    size = human_bytes(summary.bytes)
    return f"{summary.parameters:,} ({dtypes or 'none'}), {trainable}{buffers}; {size} in all"


def _forward(summary: Summary) -> str:
    macs = summary.macs or 0
    return (
        f"{human_count(macs, 'MACs')} ({human_count(2 * macs, 'FLOPs')}) for {summary.inputs}, "
        f"{summary.input_source} ({summary.input_origin}), run on {summary.rung}"
    )


def _memory(memory: TrainingMemory) -> Iterator[str]:
    parts = {
        "parameters": memory.parameters,
        "gradients": memory.gradients,
        f"{memory.optimizer} state": memory.optimizer_state,
        "buffers": memory.buffers,
        "inputs": memory.inputs,
        "activations": memory.activations,
        "temporary": memory.temporary,
    }
    where = f" in {memory.layer}" if memory.layer else ""
    yield (
        f"peak {human_bytes(memory.peak_bytes)} of tensor memory, in the {memory.phase}{where} "
        f"(batch {memory.batch}, {memory.optimizer})"
    )
    yield "= " + " + ".join(f"{human_bytes(size)} {name}" for name, size in parts.items() if size)
    yield f"loss: {memory.loss}; CUDA context, workspaces and allocator slack come on top"
    if memory.limit_bytes is not None:
        yield _fit(memory)


def _fit(memory: TrainingMemory) -> str:
    limit = human_bytes(memory.limit_bytes or 0)
    if not memory.largest_batch:
        return f"not even a batch of 1 fits {limit}"
    return f"the largest batch that fits {limit} is {memory.largest_batch:,}"


def _training_verdict(memory: TrainingMemory) -> str:
    if memory.limit_bytes is not None:
        return _fit(memory)
    least = "at least " if memory.hidden else ""
    return f"{least}{human_bytes(memory.peak_bytes)} to train at batch {memory.batch}"
