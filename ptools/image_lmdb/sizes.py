"""How large a shard becomes, known before it is written.

From liblmdb's mdb.c: a node is 8 bytes, the key and the value, rounded to even, and 2 bytes of
index; one that would take half a page or more has pages of its own for the value.
"""

import mmap

from ptools.image_lmdb.pages import HEADER
from ptools.image_lmdb.record import PREFIX_BYTES, ROW_BYTES

PAGE_BYTES = min(mmap.PAGESIZE, 32768)  # what liblmdb takes
LARGEST_VALUE = (1 << 32) - 1  # bytes
KEY_BYTES = 8  # of an image
NODE_BYTES = 8  # before the key
_ROOM = PAGE_BYTES - HEADER
LARGEST_IN_LEAF = (_ROOM // 2 & -2) - 2 - NODE_BYTES - KEY_BYTES  # bytes of an image
_REFERENCE = NODE_BYTES + KEY_BYTES + 8 + 2  # node and index of a value that has its own pages
_BRANCH = NODE_BYTES + KEY_BYTES + 2  # node and index of a leaf


def pages_for(length: int) -> int:
    """The pages of their own that so many bytes take."""
    return (HEADER + length + PAGE_BYTES - 1) // PAGE_BYTES


class SizeCount:
    """The bytes that values of known lengths take in a file; add them one by one."""

    def __init__(self, names: int) -> None:
        """`names` is the length of all class names together."""
        record = PREFIX_BYTES + 4096 + 8 * names  # with the class names written as JSON
        self.bytes = record + 6 * PAGE_BYTES  # meta pages, root, a last leaf, what is begun
        self._in_leaf = _ROOM  # no leaf yet

    def add(self, length: int, path_length: int) -> None:
        """Count a value of `length` bytes, whose path has `path_length`."""
        node = _REFERENCE
        if length > LARGEST_IN_LEAF:
            self.bytes += pages_for(length) * PAGE_BYTES
        else:
            node = NODE_BYTES + KEY_BYTES + 2 + length + (length & 1)
        self._in_leaf += node
        if self._in_leaf > _ROOM:
            self._in_leaf = node
            self.bytes += PAGE_BYTES + 2 * _BRANCH  # with its part of the branches
        self.bytes += ROW_BYTES + path_length
