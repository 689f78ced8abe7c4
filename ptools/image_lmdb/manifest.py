"""Read a list of files with their labels: .csv, .tsv, .parquet, or text with a path a line."""

import csv
import os
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from stat import S_ISREG
from typing import Any, TextIO

from ptools.errors import PtoolsError, UsageError
from ptools.image_lmdb.scan import Entry, Notes, entry_of, is_image

_PATH_COLUMNS = ("path", "filename", "file", "image", "filepath", "file_name")
_LABEL_COLUMNS = ("label", "class", "target", "category")
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,30}")
_LONGEST_LINE = 1 << 16  # a file that is no list may be one line of gigabytes
_ARROW_TEXT = re.compile(r"(dictionary<values=)?(large_)?string(_view)?\b")
_ARROW_LABEL = re.compile(rf"{_ARROW_TEXT.pattern}|(dictionary<values=)?u?int")

Row = tuple[int, str, str | None]  # line number (of a parquet: row), path, label if it has one


def read_manifest(file: Path, root: Path | None, notes: Notes) -> tuple[list[str], Iterator[Entry]]:
    """The classes of a list and, lazily, its entries in the list's order; fills `notes` meanwhile.

    Paths count from `root`, or else from the list's own folder. A row without a label takes the
    name of the folder that holds the file. Labels that are all numbers are class numbers; others
    are class names, numbered in sorted order. The list is read twice, so that memory stays flat.

    Raises:
        UsageError: the list cannot be read or names no file, a path lies outside, a label is
            missing or is a number that cannot count classes.
        PtoolsError: a parquet file without pyarrow.
    """
    base = file.parent if root is None else root
    _check(file, base)
    classes = _classes(file, base)
    return classes, _entries(file, base, classes, notes)


def _check(file: Path, base: Path) -> None:
    try:
        if not base.is_dir():
            raise UsageError(f"there is no folder {base}", hint="give the one that holds the files")
        if not S_ISREG(file.stat().st_mode):  # a pipe can be read only once
            raise UsageError(f"{file} is not a regular file", hint="save the list to a file first")
    except OSError as error:
        raise UsageError(
            f"cannot read {file}: {error.strerror}",
            hint="give the list of files, path,label a line",
        ) from error


def _entries(file: Path, base: Path, classes: list[str], notes: Notes) -> Iterator[Entry]:
    labels = {name: label for label, name in enumerate(classes)}
    for path, name, _ in _located(file, base):
        if name not in labels:
            raise PtoolsError(f"{file} was changed while it was read", hint="run it again")
        entry = entry_of(str(base), path, labels[name], notes)
        if entry is not None:
            yield entry


def _classes(file: Path, base: Path) -> list[str]:
    names, rows, all_written = set(), 0, True
    for _, name, written in _located(file, base):
        names.add(name)
        rows += 1
        all_written &= written
    if not rows:
        raise UsageError(f"{file} lists no files", hint="its lines are: path,label")
    # Folders named 0, 1, 2 ... 10 are names to ImageFolder, and here.
    if all_written and all(map(_INTEGER.fullmatch, names)):
        return _numbered(file, {int(name) for name in names}, rows)
    return sorted(names)


def _numbered(file: Path, numbers: set[int], rows: int) -> list[str]:
    lowest, highest = min(numbers), max(numbers)
    hint = "number the classes from 0, or name them: c0001, c0002"
    if lowest < 0:
        raise UsageError(f"{file} has the label {lowest}", hint)
    if highest > 10 * rows + 1000:
        raise UsageError(
            f"{file} has the label {highest}: too large for a list of length {rows:,}", hint
        )
    return [str(number) for number in range(highest + 1)]


def _located(file: Path, base: Path) -> Iterator[tuple[str, str, bool]]:
    """Each row's path from `base` on, its label, and whether the list itself gave that."""
    folders = (os.path.normpath(base.absolute()), str(base.resolve()))  # either may be listed
    prefixes = tuple(folder.rstrip(os.sep) + os.sep for folder in folders)
    for line, written, label in _rows(file):
        at = f"{file} line {line}"
        path = _inside(written, prefixes, at)
        name = path.rpartition("/")[0].rpartition("/")[2] if label is None else label.strip()
        if not name:
            hint = f"write: {path},LABEL"
            raise UsageError(f"{at} gives no label, nor a folder to take it from", hint)
        yield path, name, label is not None


def _inside(written: str, prefixes: tuple[str, ...], at: str) -> str:
    if "\0" in written:
        raise UsageError(f"{at} holds a NUL byte", hint="save the list as UTF-8 text, or .parquet")
    if not written:
        raise UsageError(f"{at} names no file", hint="write: path,label")
    path = os.path.normpath(written)
    for prefix in prefixes:
        path = path.removeprefix(prefix)
    if path.startswith(os.sep) or path.partition(os.sep)[0] == os.pardir:
        raise UsageError(
            f"{at}: {written} lies outside {prefixes[0].rstrip(os.sep)}",
            hint="pass as SOURCE the folder that holds all files of the list",
        )
    return path.replace(os.sep, "/")


def _rows(file: Path) -> Iterator[Row]:
    suffix = file.suffix.lower()
    try:
        if suffix == ".parquet":
            yield from _parquet_rows(file)
            return
        # A BOM is skipped; any other byte is kept, also a lone CR in a name.
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as text:
            if suffix in (".csv", ".tsv"):
                yield from _csv_rows(file, text, "," if suffix == ".csv" else "\t")
            else:
                yield from _text_rows(file, text)
    except OSError as error:
        raise UsageError(
            f"cannot read {file}: {error.strerror or error}", hint="give the list as a file"
        ) from error


def _lines(file: Path, text: TextIO) -> Iterator[str]:
    number = 0
    while line := text.readline(_LONGEST_LINE):
        number += 1
        if len(line) == _LONGEST_LINE:
            raise UsageError(
                f"{file} line {number} is longer than any path", hint="is it a list of files?"
            )
        yield line


def _text_rows(file: Path, text: TextIO) -> Iterator[Row]:
    for number, line in enumerate(_lines(file, text), start=1):
        line = line.removesuffix("\n").removesuffix("\r")
        path, separator, label = line.rpartition("\t" if "\t" in line else ",")
        if not line.strip() or (number == 1 and path.lower() in _PATH_COLUMNS):  # a header
            continue
        if not separator or is_image(label):  # a comma in a file's name
            yield number, line, None
        else:
            yield number, path, label


def _csv_rows(file: Path, text: TextIO, delimiter: str) -> Iterator[Row]:
    reader = csv.reader(_lines(file, text), delimiter=delimiter, skipinitialspace=True, strict=True)
    path, label, width = 0, None, 0
    try:
        for row in filter(None, reader):
            at = f"{file} line {reader.line_num}"
            if not width:
                width = len(row)
                header = _columns(row, at)
                path, label = header or _positions(row, at)
                if header:
                    continue
            if len(row) != width:
                raise UsageError(
                    f"{at} differs from the first row: column count {len(row)}, not {width}",
                    hint="quote a path that holds a comma",
                )
            yield reader.line_num, row[path], None if label is None else row[label]
    except csv.Error as error:
        raise UsageError(
            f"{file} line {reader.line_num} is no CSV: {error}", hint="check its quotes"
        ) from error


def _columns(names: list[str], at: str) -> tuple[int, int | None] | None:
    """Where a header has the path and the label; None if it is no header."""
    names = [name.strip().lower() for name in names]
    path = next((names.index(name) for name in _PATH_COLUMNS if name in names), None)
    label = next((names.index(name) for name in _LABEL_COLUMNS if name in names), None)
    if path is None:
        return None
    if label is None and len(names) > 1:
        raise UsageError(
            f"{at} names no label column, only {', '.join(names)}",
            hint=f"call it one of: {', '.join(_LABEL_COLUMNS)}",
        )
    return path, label


def _positions(first: list[str], at: str) -> tuple[int, int | None]:
    """Where rows without a header have the path and the label."""
    if not set("./\\") & set(first[0]):  # taken for a file, an unknown header would be a class
        raise UsageError(
            f"{at}: {first[0]!r} is neither a file's name nor a header that is known",
            hint="make the first line: path,label",
        )
    return 0, 1 if len(first) > 1 else None


def _parquet_rows(file: Path) -> Iterator[Row]:
    try:
        pyarrow: Any = import_module("pyarrow")
        parquet: Any = import_module("pyarrow.parquet")
    except ImportError as error:
        raise PtoolsError(f"{file} needs pyarrow: {error}", hint="pip install pyarrow") from error
    try:
        with parquet.ParquetFile(file, buffer_size=1 << 20) as table:
            names = _parquet_columns(file, table.schema_arrow)
            first = 1
            for batch in table.iter_batches(batch_size=4096, columns=names):
                columns = [batch.column(name).to_pylist() for name in names]
                for number, row in enumerate(zip(*columns, strict=True), start=first):
                    if None in row:
                        hint = "drop the row, or fill it"
                        raise UsageError(f"{file} line {number} has an empty cell", hint)
                    yield number, row[0], str(row[1]) if len(row) > 1 else None
                first += batch.num_rows
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(
            f"{file} cannot be read as Parquet: {reason}", hint="save it again, or as .csv"
        ) from error


def _parquet_columns(file: Path, schema: Any) -> list[str]:
    found = _columns(schema.names, f"{file}")
    if found is None:
        raise UsageError(
            f"{file} names no path column, only {', '.join(schema.names)}",
            hint=f"call it one of: {', '.join(_PATH_COLUMNS)}",
        )
    for index, kind in zip(found, (_ARROW_TEXT, _ARROW_LABEL), strict=True):
        if index is not None and not kind.match(str(schema.types[index])):
            raise UsageError(
                f"the column {schema.names[index]} of {file} holds {schema.types[index]}",
                hint="paths are text, labels are text or whole numbers",
            )
    names = [schema.names[index] for index in found if index is not None]
    if any(schema.names.count(name) > 1 for name in names):
        raise UsageError(f"{file} has two columns of one name", hint="rename one of them")
    return names
