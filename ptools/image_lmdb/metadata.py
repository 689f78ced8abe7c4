"""`meta.json`, which names the shards of a complete set, and `skipped.jsonl`, what is not in it."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ptools.image_lmdb.errors import DamagedDatabase, NotADatabase
from ptools.image_lmdb.record import FORMAT, VERSION, newer
from ptools.image_lmdb.report import Skipped
from ptools.image_lmdb.store import META, SKIPPED, Store


@dataclass(frozen=True)
class ShardEntry:
    """A shard as `meta.json` lists it."""

    file: str
    images: int
    bytes: int  # of the file


@dataclass(frozen=True)
class Metadata:
    """The content of `meta.json`."""

    classes: tuple[str, ...]
    images: int
    bytes: int  # of the images
    shards: tuple[ShardEntry, ...]


def write_metadata(store: Store, metadata: Metadata) -> None:
    """Write `meta.json`; once it is there, the set is whole."""
    document = {"format": FORMAT, "version": VERSION, **asdict(metadata)}
    store.write(META, (json.dumps(document, indent=1) + "\n").encode())


def write_skipped(store: Store, skipped: Sequence[Skipped]) -> None:
    """List what was left out, one JSON object a line; no file if nothing was."""
    if not skipped:
        store.remove(SKIPPED)
        return
    store.write(SKIPPED, b"".join(json.dumps(asdict(one)).encode() + b"\n" for one in skipped))


def read_metadata(folder: Path) -> Metadata:
    """Read the `meta.json` of a set.

    Raises:
        NotADatabase: there is none, or one of another or a newer format.
        DamagedDatabase: it cannot be understood.
    """
    file = folder / META
    try:
        document = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise _missing(folder) from None
    except OSError as error:
        raise NotADatabase(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DamagedDatabase(f"{file} is damaged: {error}", "copy it or pack it again") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise NotADatabase(f"{file} was not written by ptools pack-lmdb")
    if document.get("version") != VERSION:
        raise newer(str(file), document.get("version"))
    try:
        return Metadata(
            tuple(map(str, document["classes"])),
            int(document["images"]),
            int(document["bytes"]),
            tuple(
                ShardEntry(_plain(one["file"]), int(one["images"]), int(one["bytes"]))
                for one in document["shards"]
            ),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DamagedDatabase(
            f"{file} is damaged: {type(error).__name__} {error}", "copy it or pack it again"
        ) from error


def read_skipped(folder: Path) -> Iterator[Skipped]:
    """What was left out of a set, as `skipped.jsonl` lists it.

    Raises:
        DamagedDatabase: a line of it cannot be understood.
    """
    file = folder / SKIPPED
    if not file.is_file():
        return
    with file.open(encoding="utf-8") as lines:
        try:
            for line in lines:
                one = json.loads(line)
                yield Skipped(str(one["path"]), str(one["reason"]))
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise DamagedDatabase(f"{file} is damaged: {type(error).__name__} {error}") from error


def _plain(name: str) -> str:
    """A file's name, which must not lead out of the folder."""
    if Path(name).name != name:
        raise ValueError(f"{name!r} is no file name")
    return name


def _missing(folder: Path) -> NotADatabase:
    if folder.name.endswith(".part") or folder.with_name(folder.name + ".part").is_dir():
        return NotADatabase(
            f"{folder} is not finished: packing was interrupted, or still goes on",
            hint="run the same ptools pack-lmdb command again: finished shards are kept",
        )
    return NotADatabase(f"{folder} has no {META}: it is no set of ptools, or only a part of one")
