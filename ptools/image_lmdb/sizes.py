"""How large an LMDB file becomes, known before it is written.

From liblmdb's mdb.c: a node is 8 bytes, the key and the value, rounded to even, and 2 bytes of
index; one that would take half a page or more has pages of its own for the value. Keys that are
appended in order fill each page to its end.
"""

import mmap

from ptools.image_lmdb.pages import HEADER
from ptools.image_lmdb.record import PREFIX_BYTES, ROW_BYTES

PAGE_BYTES = min(mmap.PAGESIZE, 32768)  # what liblmdb takes
LARGEST_VALUE = (1 << 32) - 1  # bytes
_ROOM = PAGE_BYTES - HEADER
_LARGEST_NODE = (_ROOM // 2 & -2) - 2
_NODE = 8 + 8 + 2  # header, key and index of a node
_REFERENCE = 8  # what a node holds of a value that has its own pages
_SPARE = 64 * PAGE_BYTES  # pages that a transaction copies before it frees the old ones


class SizeCount:
    """The bytes that values of known lengths take in a file; add them one by one."""

    def __init__(self, names: int) -> None:
        """`names` is the length of all class names together."""
        self._pages = 0
        self._in_leaf = _ROOM  # no leaf yet
        self._leaves = 0
        self._record = PREFIX_BYTES + 4096 + 8 * names  # with the class names written as JSON

    def add(self, length: int, path_length: int) -> None:
        """Count a value of `length` bytes, whose path has `path_length`."""
        node = 16 + length
        if node > _LARGEST_NODE:
            self._pages += (HEADER + length + PAGE_BYTES - 1) // PAGE_BYTES
            node = 16 + _REFERENCE
        node += (node & 1) + 2
        self._in_leaf += node
        if self._in_leaf > _ROOM:
            self._leaves += 1
            self._in_leaf = node
        self._record += ROW_BYTES + path_length

    @property
    def bytes(self) -> int:
        """The size of the file with its metadata record: a little more than it takes."""
        branches = self._leaves // 64 + 2
        record = (HEADER + self._record + PAGE_BYTES - 1) // PAGE_BYTES
        pages = 2 + self._pages + self._leaves + branches + record
        return (pages + pages // 100) * PAGE_BYTES + _SPARE
