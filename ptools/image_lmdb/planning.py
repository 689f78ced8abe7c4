"""Make the plan of a source: list it, check it, and say what is odd about it."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from ptools.errors import UsageError
from ptools.image_lmdb.manifest import read_manifest
from ptools.image_lmdb.plan import Options, Plan, write_plan
from ptools.image_lmdb.progress import Meter
from ptools.image_lmdb.scan import Entry, Notes, classes_of, no_images, scan
from ptools.image_lmdb.sizes import LARGEST_VALUE

_NAMED = 3  # as many names as a warning lists


def make_plan(
    source: Path,
    manifest: Path | None,
    options: Options,
    shard_size: int,
    file: Path,
    meter: Meter,
) -> tuple[Plan, tuple[str, ...]]:
    """List the source and write its plan to `file`; also returns what a user should know of it.

    Raises:
        UsageError: there is nothing to pack, or no class.
    """
    notes = Notes()
    entries: Iterable[Entry]
    if manifest is None:
        classes = classes_of(source)
        entries = scan(source, classes, notes)
    else:
        classes, entries = read_manifest(manifest, source, notes)
    counted = _counted(entries, notes, meter)
    plan = write_plan(file, source, classes, counted, notes.unreadable, options, shard_size)
    if not plan.images:
        raise no_images(source, notes)
    return plan, tuple(warnings(notes))


def _counted(entries: Iterable[Entry], notes: Notes, meter: Meter) -> Iterator[Entry]:
    for entry in entries:
        if entry.size > LARGEST_VALUE:
            notes.unreadable.append((entry.path, "larger than the 4 GiB that LMDB can hold"))
            continue
        meter.add(1, entry.size)
        yield entry


def warnings(notes: Notes) -> Iterator[str]:
    """What was seen in the source that its owner may not know."""
    if names := notes.suspicious_classes:
        are = "is a class" if len(names) == 1 else "are classes"
        yield (
            f"{_listed(names)} {are} here as to ImageFolder, though the name is that of a tool's "
            "folder: remove it from the source if it holds no class of yours"
        )
    if names := notes.empty_classes:
        yield f"no image in {_listed(names)}: the label stays, ImageFolder would refuse it"
    if names := notes.loops:
        yield f"{_listed(names)} leads back to a folder above it and was not entered"
    if notes.stray:
        count = f"{notes.stray:,} file{'s' * (notes.stray != 1)}"
        yield f"{count} outside of any class folder left out, like {notes.first_stray!r}"
    if notes.others:
        total = sum(notes.others.values())
        common = notes.others.most_common(_NAMED)
        kinds = ", ".join(f"{count:,} {kind or 'without extension'}" for kind, count in common)
        yield f"{total:,} file{'s' * (total != 1)} left out, no images by name: {kinds}"


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_NAMED])
    return shown + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def place_of(source: str | Path | None, manifest: str | Path | None) -> Path:
    """The folder that paths count from.

    Raises:
        UsageError: neither it nor a list is given.
    """
    if source is not None:
        return Path(source)
    if manifest is not None:
        return Path(manifest).parent
    raise UsageError("there is no SOURCE to pack", hint="ptools pack-lmdb ./imgs")


def default_output(source: Path, manifest: Path | None, given: bool) -> Path:
    """`imgs.lmdb` beside `imgs`; for a list, its own name beside it."""
    named = source.absolute() if given else (manifest or source).with_suffix("").absolute()
    with suppress(ValueError):
        named = named.relative_to(Path.cwd())
    return named.with_name(named.name + ".lmdb")
