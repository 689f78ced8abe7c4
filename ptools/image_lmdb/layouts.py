"""How other tools lay images out in LMDB, told by a few values.

- image files under their names: BasicSR, mmengine and mmcv, LSUN
- Caffe's Datum: an image file, or pixels, with a label
- pickles, which are refused: to read one is to run it
"""

import os
import re
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from ptools.image_lmdb.datum import Datum, image_in, read_datum
from ptools.image_lmdb.errors import NotADatabase
from ptools.image_lmdb.pages import Tree, Value, last_value, values
from ptools.image_lmdb.record import KEY

_IMAGE = re.compile(  # how files begin, by format
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF.{4}WEBP|BM.{4}\0{4}|II[*+]\0|MM\0[*+]"
    rb"|P[1-7]\s|\0\0\0\x0cjP  |.{4}ftypavi[fs]",
    re.DOTALL,
)
_PICKLE = re.compile(rb"\x80[\x02-\x05]")
_PICKLED = b"__keys__"  # a record of folder2lmdb and its many copies
_EXTRA = (b"_", b"meta", b"num-samples")  # how keys begin whose values are hardly images
_IN_LEAF = 2048  # bytes: longer values do not lie on the page of their key
_SAMPLES = 16
_MOST_CLASSES = 1_000_000

ANEW = "pack the original folder anew: ptools pack-lmdb IMGS"


class Index:
    """Keys and places of values, in flat arrays."""

    def __init__(self, found: Iterable[Value] = ()) -> None:
        self._keys = bytearray()
        self._ends = array("Q")
        self._offsets = array("Q")
        self._lengths = array("I")
        for value in found:
            self.add(value)

    def add(self, value: Value) -> None:
        self._keys += value.key
        self._ends.append(len(self._keys))
        self._offsets.append(value.offset)
        self._lengths.append(value.length)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Value:
        start = self._ends[index - 1] if index else 0
        key = bytes(self._keys[start : self._ends[index]])
        return Value(key, self._offsets[index], self._lengths[index])

    def __iter__(self) -> Iterator[Value]:
        return map(self.__getitem__, range(len(self)))


@dataclass(frozen=True, slots=True)
class Layout:
    """The images of a database, and how to get a file out of a value (None: it is damaged)."""

    kind: str
    classes: tuple[str, ...]
    index: Index
    labels: "array[int]"
    unwrap: Callable[[bytes], bytes | None]


def recognise(tree: Tree, name: str) -> Layout | None:
    """Find out how images lie in a database; `name` is that of its class, if it has but one.

    None if that is not known, or if it is an unfinished or damaged set of ours.

    Raises:
        NotADatabase: what it holds cannot be read safely.
        DamagedDatabase: its pages are damaged.
    """
    last = last_value(tree)
    if last is None or last.key == KEY:
        return None
    index = Index(values(tree))
    end = len(index) - 1
    if index[0].key == bytes(8) and last.key == end.to_bytes(8, "big"):
        return None  # our keys, without the record that comes last
    places = sorted({place * end // (_SAMPLES - 1) for place in range(_SAMPLES)})
    sample = [index[place] for place in places if not index[place].key.startswith(_EXTRA)]

    def mostly(test: Callable[[Tree, Value], bool]) -> bool:
        return 2 * sum(test(tree, value) for value in sample) > len(sample)

    if mostly(_is_image):
        return _named_images(tree, index, name)
    if mostly(lambda tree, value: _datum(tree, value) is not None):
        return _datums(tree, index)
    if mostly(_is_pickle) or any(value.key == _PICKLED for value in index):
        raise NotADatabase(
            f"the values in {tree.name} are pickles, which can run any code: ptools never does",
            hint=ANEW,
        )
    return None


def _named_images(tree: Tree, index: Index, name: str) -> Layout | None:
    kept, numbers = Index(), array("I")
    folders: dict[str, int] = {}  # numbered as they appear
    for value in index:
        # To look at every value would read much of the disk: only what costs nothing, as it lies
        # beside its key, and what is hardly an image.
        doubtful = value.length < _IN_LEAF or value.key.startswith(_EXTRA)
        if doubtful and not _is_image(tree, value):
            continue
        kept.add(value)
        folder = os.fsdecode(value.key.rpartition(b"/")[0]) or name
        numbers.append(folders.setdefault(folder, len(folders)))
    if 2 * len(kept) < len(index):
        return None
    classes = tuple(sorted(folders))
    ranks = {folders[folder]: rank for rank, folder in enumerate(classes)}
    labels = array("I", (ranks[number] for number in numbers))
    kind = f"image files by name{_left_out(index, kept)}"
    return Layout(kind, classes, kept, labels, lambda data: data)


def _datums(tree: Tree, index: Index) -> Layout | None:
    kept, labels, encoded = Index(), array("I"), True
    for value in index:
        datum = _datum(tree, value)
        if datum is None:
            continue
        _check(datum, f"{os.fsdecode(value.key)!r} in {tree.name}")
        kept.add(value)
        labels.append(datum.label)
        encoded = encoded and bool(datum.encoded)
    if 2 * len(kept) < len(index):
        return None
    classes = tuple(map(str, range(max(labels) + 1)))
    order = "" if encoded else ", with pixels taken to be in the order BGR"
    kind = f"Caffe's Datum{order}{_left_out(index, kept)}"
    return Layout(kind, classes, kept, labels, image_in)


def _check(datum: Datum, name: str) -> None:
    if datum.floats:
        raise NotADatabase(f"{name} is a Datum of floating-point numbers, not an image", ANEW)
    if not datum.encoded and datum.channels not in (1, 3):
        raise NotADatabase(f"{name} is a Datum of {datum.channels} channels, not of 1 or 3", ANEW)
    if datum.label > _MOST_CLASSES:
        raise NotADatabase(f"{name} has the label {datum.label}, which is no class", ANEW)


def _left_out(index: Index, kept: Index) -> str:
    others = len(index) - len(kept)
    return f" ({others:,} other record{'s'[: others != 1]} left out)" if others else ""


def _is_image(tree: Tree, value: Value) -> bool:
    head = os.pread(tree.descriptor, min(16, value.length), value.offset)
    return _IMAGE.match(head) is not None


def _datum(tree: Tree, value: Value) -> Datum | None:
    def read(start: int, count: int) -> bytes:
        return os.pread(tree.descriptor, count, value.offset + start)

    return read_datum(read, value.length)


def _is_pickle(tree: Tree, value: Value) -> bool:
    head = os.pread(tree.descriptor, min(2, value.length), value.offset)
    end = os.pread(tree.descriptor, 1, value.offset + value.length - 1)
    return _PICKLE.match(head) is not None and end == b"."
