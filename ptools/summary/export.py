"""Tables as text for other programs: Markdown and CSV."""

from __future__ import annotations

import csv
import io
import re

from ptools.summary.report import Summary
from ptools.summary.table import By, Table, shape_text, types_of


def markdown(table: Table) -> str:
    """As a GitHub table."""
    right = ["---" if name in Table.LEFT else "---:" for name in table.columns]
    lines = [table.columns, tuple(right), *table.rows]
    escaped = ([cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines)
    text = "".join(f"| {' | '.join(line)} |\n" for line in escaped)
    return re.sub(r"(?<=^\| )(  )+", lambda m: "&nbsp;" * len(m[0]), text, flags=re.MULTILINE)


def csv_text(summary: Summary, by: By = "module") -> str:
    """Every row in full numbers, unfolded."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    if by == "module":
        writer.writerow(_CSV_COLUMNS)
        for layer in summary.layers:
            values = (getattr(layer, name) for name in _CSV_COLUMNS)
            writer.writerow([_csv_value(value) for value in values])
    elif by == "op":
        writer.writerow(("operation", "calls", "macs", "backward_macs", "bytes"))
        writer.writerows(
            (o.name, o.calls, o.macs, o.backward_macs, o.bytes) for o in summary.operations
        )
    elif by == "line":
        writer.writerow(("file", "line", "macs", "backward_macs", "code"))
        writer.writerows((s.file, s.line, s.macs, s.backward_macs, s.code) for s in summary.lines)
    else:
        writer.writerow(("type", "layers", "calls", "parameters", "macs"))
        writer.writerows((name, *sums) for name, sums in types_of(summary))
    return out.getvalue()


_CSV_COLUMNS = (
    "path",
    "type",
    "depth",
    "kernel",
    "calls",
    "inputs",
    "outputs",
    "parameters",
    "own_parameters",
    "trainable",
    "buffers",
    "bytes",
    "macs",
    "own_macs",
    "backward_macs",
    "activation_bytes",
    "tied",
    "same_as",
)


def _csv_value(value: object) -> object:
    if isinstance(value, tuple):
        shapes = [item for item in value if isinstance(item, tuple)]
        return shape_text(shapes) if shapes else "; ".join(map(str, value))
    return value
