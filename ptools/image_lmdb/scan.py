"""Walk a folder of class folders: the files, order and labels that ImageFolder would give."""

import heapq
import os
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ptools.errors import UsageError

# torchvision.datasets.folder.IMG_EXTENSIONS
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

_SYSTEM_FOLDERS = {"__MACOSX", "@eaDir", "lost+found"}
_KINDS_COUNTED = 1000  # extensions such as .000001 would make a count as long as the folder
_SPECIAL = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

Identity = tuple[int, int]  # st_dev, st_ino


class Entry(NamedTuple):
    """One image file of the source."""

    path: str  # relative to the source, with '/'; bytes that are no UTF-8 are surrogate escapes
    label: int
    size: int  # bytes
    mtime_ns: int


@dataclass
class Notes:
    """What a scan saw besides images; complete when the scan has ended."""

    unreadable: list[tuple[str, str]] = field(default_factory=list)  # relative path, reason
    others: Counter[str] = field(default_factory=Counter)  # files that are no images, by extension
    empty_classes: list[str] = field(default_factory=list)
    suspicious_classes: list[str] = field(default_factory=list)  # names that tools make, not people
    loops: list[str] = field(default_factory=list)  # links to a folder above: not entered
    stray: int = 0  # files in the source itself, in no class
    first_stray: str | None = None


@dataclass
class _Listing:
    folders: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)  # links without an image's name: folders once?
    rest: list[str] = field(default_factory=list)


def is_image(name: str) -> bool:
    """Whether a file name ends as ImageFolder asks."""
    return name.lower().endswith(IMAGE_EXTENSIONS)


def classes_of(root: Path) -> list[str]:
    """The names of the class folders, sorted as ImageFolder sorts them.

    Raises:
        UsageError: `root` is no folder, cannot be listed, or holds no folders.
    """
    listing = _list_root(root)
    if not listing.folders:
        raise _no_classes(root, listing)
    return sorted(listing.folders)


def scan(root: Path, classes: list[str], notes: Notes) -> Iterator[Entry]:
    """Every image below the class folders, in the order of ImageFolder; fills `notes` on the way.

    Memory holds one folder's names at a time. Unlike ImageFolder it does not enter a folder that is
    its own ancestor, and leaves out what is no regular file.
    """
    top = str(root)
    _note_strays(top, _list_root(root), notes)
    ancestors = _with_ancestors(root)
    for label, name in enumerate(classes):
        if name.startswith(".") or name in _SYSTEM_FOLDERS:
            notes.suspicious_classes.append(name)
        empty = True
        for folder, images in _walk(top, name, ancestors, notes):
            for image in images:
                entry = entry_of(top, f"{folder}/{image}", label, notes)
                if entry is not None:
                    empty = False
                    yield entry
        if empty:
            notes.empty_classes.append(name)


def entry_of(top: str, path: str, label: int, notes: Notes) -> Entry | None:
    """Look at one file without opening it; None, and a note, if it is no regular file."""
    try:
        status = os.stat(f"{top}/{path}")  # noqa: PTH116 - a Path a file would double the time
    except (OSError, ValueError) as error:
        notes.unreadable.append((path, _reason(error, f"{top}/{path}")))
        return None
    if not stat.S_ISREG(status.st_mode):
        kind = _SPECIAL.get(stat.S_IFMT(status.st_mode), "something else")
        notes.unreadable.append((path, f"{kind}, not a file"))
        return None
    return Entry(path, label, status.st_size, status.st_mtime_ns)


def no_images(root: Path, notes: Notes) -> UsageError:
    """The error for a scan that ended without an image, told from its notes."""
    if notes.unreadable:
        path, reason = notes.unreadable[0]
        return UsageError(
            f"no image below {root} can be read: {path}: {reason}",
            hint=f"check the links and permissions below {root}",
        )
    found = ", ".join(f"{n} {kind or 'extensionless'}" for kind, n in notes.others.most_common(3))
    return UsageError(
        f"the class folders of {root} hold no images" + (f", but {found} files" if found else ""),
        hint=f"images end in {', '.join(IMAGE_EXTENSIONS)}; --list FILE takes any other",
    )


def _walk(
    top: str, name: str, ancestors: frozenset[Identity], notes: Notes
) -> Iterator[tuple[str, list[str]]]:
    """The folders of a class, each with the sorted names of its images.

    A folder's path sorts before all paths below it, so the smallest path known is always the next
    one of `sorted(os.walk(...))`, and no folder is listed before its turn.
    """
    waiting = [(name, ancestors)]
    while waiting:
        path, above = heapq.heappop(waiting)
        folder = path.replace(os.sep, "/")
        try:
            identity = _identity(f"{top}/{path}")
            if identity in above:  # entering it would never end
                notes.loops.append(folder)
                continue
            listing = _list(f"{top}/{path}")
        except OSError as error:
            notes.unreadable.append((folder, _reason(error, f"{top}/{path}")))
            continue
        inside = above | {identity}
        for child in listing.folders:
            heapq.heappush(waiting, (f"{path}{os.sep}{child}", inside))
        _note_others(top, f"{folder}/", listing, notes)
        yield folder, sorted(listing.images)


def _list_root(root: Path) -> _Listing:
    hint = "give the folder that holds one folder a class"
    try:
        return _list(str(root))
    except FileNotFoundError as error:
        raise UsageError(f"there is no folder {root}", hint) from error
    except NotADirectoryError as error:
        raise UsageError(f"{root} is not a folder", hint) from error
    except OSError as error:
        raise UsageError(f"cannot list {root}: {error.strerror}", hint) from error


def _list(path: str) -> _Listing:
    listing = _Listing()
    with os.scandir(path) as entries:
        for entry in entries:
            if _is_folder(entry):
                listing.folders.append(entry.name)
            elif is_image(entry.name):
                listing.images.append(entry.name)
            elif entry.is_symlink() and not os.access(entry.path, os.F_OK):
                listing.broken.append(entry.name)
            else:
                listing.rest.append(entry.name)
    return listing


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # as in os.walk: a link that cannot be followed is taken for a file
        return False


def _note_strays(top: str, listing: _Listing, notes: Notes) -> None:
    strays = listing.images + listing.rest
    notes.stray = len(strays)
    notes.first_stray = min(strays, default=None)
    _note_broken(top, "", listing.broken, notes)


def _note_others(top: str, prefix: str, listing: _Listing, notes: Notes) -> None:
    _note_broken(top, prefix, listing.broken, notes)
    for name in listing.rest:
        stem, dot, extension = name.lower().rpartition(".")
        kind = dot + extension if stem else ""
        if len(notes.others) >= _KINDS_COUNTED and kind not in notes.others:
            kind = ""
        notes.others[kind] += 1


def _note_broken(top: str, prefix: str, names: list[str], notes: Notes) -> None:
    """A link that leads nowhere may have been a whole folder of images on another disk."""
    for name in sorted(names):
        entry_of(top, prefix + name, 0, notes)


def _identity(path: str | Path) -> Identity:
    status = Path(path).stat()
    return status.st_dev, status.st_ino


def _with_ancestors(root: Path) -> frozenset[Identity]:
    found = set()
    for folder in (root, *root.resolve().parents):
        with suppress(OSError):
            found.add(_identity(folder))
    return frozenset(found)


def _reason(error: OSError | ValueError, path: str) -> str:
    if isinstance(error, FileNotFoundError) and Path(path).is_symlink():
        return "a broken link"
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _no_classes(root: Path, listing: _Listing) -> UsageError:
    counts = {
        "image": len(listing.images),
        "broken link": len(listing.broken),
        "other file": len(listing.rest),
    }
    found = [f"{n} {what}{'s' * (n != 1)}" for what, n in counts.items() if n]
    return UsageError(
        f"{root} holds {' and '.join(found)} but no class folders" if found else f"{root} is empty",
        hint=f"give each class its folder, {root}/CLASS/image.jpg, or pass --list FILE, "
        "whose lines are: path,label",
    )
