"""The pages of an LMDB 0.9 file, made without liblmdb for keys that come in order.

Layout as in `pages`. Leaves are filled to their end, a value too long for one has pages of its own,
and branches come last, so that no page is written twice. liblmdb would copy each value once more
on its way to the disk, and let only one process write.
"""

import struct
from collections.abc import Sequence
from typing import NamedTuple

from ptools.image_lmdb.pages import BRANCH, HEADER, LEAF, MAGIC, NODE, OVERFLOWS, VERSION
from ptools.image_lmdb.sizes import KEY_BYTES, NODE_BYTES, PAGE_BYTES, pages_for

FIRST_PAGE = 2  # behind the meta pages
TRANSACTION = 2  # the number of the only one; a copy that liblmdb compacts has 1
_OVERFLOW, _META = 0x04, 0x08  # kinds of pages, besides those of the tree
_NUMERIC_KEYS = 0x08  # of the database of free pages
_NONE = (1 << 64) - 1  # no page
_PAGE = struct.Struct("<QHHHH")  # number, 0, kind, the bounds of the free space
_OVERFLOW_PAGE = struct.Struct("<QHHI")  # number, 0, kind, how many pages
_META_START = struct.Struct("<IIQQ")  # magic, version, address, size of the map
_DATABASE = struct.Struct("<IHHQQQQQ")  # page size, flags, depth, pages of 3 kinds, entries, root
_META_END = struct.Struct("<QQ")  # last page, transaction
_EMPTY = (0, 0, 0, 0, 0, _NONE)  # a database: from its depth on
_MOST_CHILDREN = (PAGE_BYTES - HEADER) // (NODE_BYTES + KEY_BYTES + 2)


class Leaf:
    """A leaf page that nodes are added to, from its end towards its start."""

    def __init__(self, number: int, page: bytes = bytes(PAGE_BYTES)) -> None:
        self.number = number
        self._page = bytearray(page)
        lower, upper = struct.unpack_from("<HH", page, 12)
        self._lower: int = lower or HEADER
        self._upper: int = upper or PAGE_BYTES

    def add(self, node: bytes) -> int | None:
        """Add a node, whose length is even; its place in the file, or None if it has no room."""
        upper = self._upper - len(node)
        if upper < self._lower + 2:
            return None
        self._page[self._lower : self._lower + 2] = upper.to_bytes(2, "little")
        self._page[upper : self._upper] = node
        self._lower, self._upper = self._lower + 2, upper
        return self.number * PAGE_BYTES + upper

    def page(self) -> bytes:
        """Its bytes, as they are now."""
        _PAGE.pack_into(self._page, 0, self.number, 0, LEAF, self._lower, self._upper)
        return bytes(self._page)


def node(key: bytes, value: bytes) -> bytes:
    """What a leaf holds of a value that fits."""
    return _node(key, len(value), 0, value)


def reference(key: bytes, length: int, first_page: int) -> bytes:
    """What a leaf holds of a value that has pages of its own."""
    return _node(key, length, OVERFLOWS, first_page.to_bytes(8, "little"))


def _node(key: bytes, length: int, flags: int, content: bytes) -> bytes:
    head = NODE.pack(length & 0xFFFF, length >> 16, flags, len(key))
    return b"".join((head, key, content, bytes(len(key) + len(content) & 1)))


def overflow_header(first_page: int, length: int) -> bytes:
    """What stands before a value on the first of its own pages."""
    return _OVERFLOW_PAGE.pack(first_page, 0, _OVERFLOW, pages_for(length))


class Child(NamedTuple):
    """A page below a branch, and the first key on it."""

    key: bytes
    number: int


class Branches(NamedTuple):
    """All pages above the leaves."""

    data: bytes
    pages: int
    levels: int
    root: int


def branches(leaves: Sequence[Child], first_page: int) -> Branches:
    """The pages above these leaves, the first of them numbered `first_page`."""
    data, children, levels, number = [], list(leaves), 0, first_page
    while len(children) > 1:
        levels += 1
        below, children = children, []
        pages = -(-len(below) // _MOST_CHILDREN)
        for page in range(pages):  # evenly: a branch with one child would be none to liblmdb
            some = below[page * len(below) // pages : (page + 1) * len(below) // pages]
            data.append(_branch(number, some))
            children.append(Child(some[0].key, number))
            number += 1
    return Branches(b"".join(data), number - first_page, levels, children[0].number)


def _branch(number: int, children: Sequence[Child]) -> bytes:
    page, lower, upper = bytearray(PAGE_BYTES), HEADER, PAGE_BYTES
    for key, child in children:
        if lower == HEADER:
            key = b""  # what sorts before the second child's key is below the first
        high, low = divmod(child, 1 << 16)
        head = NODE.pack(low, high & 0xFFFF, high >> 16, len(key))
        upper -= len(head) + len(key) + (len(key) & 1)
        struct.pack_into("<H", page, lower, upper)
        page[upper : upper + len(head) + len(key)] = head + key
        lower += 2
    _PAGE.pack_into(page, 0, number, 0, BRANCH, lower, upper)
    return bytes(page)


def meta_pages(leaves: int, own_pages: int, above: Branches, entries: int) -> bytes:
    """The start of a file of so many leaves and pages of values, with the pages `above` last."""
    last = FIRST_PAGE + leaves + own_pages + above.pages - 1
    main = (1 + above.levels, above.pages, leaves, own_pages, entries, above.root)
    # The meta page with the greater transaction counts; even ones are written to the first.
    return _meta(0, TRANSACTION, last, main) + _meta(1, 0, FIRST_PAGE - 1, _EMPTY)


def _meta(number: int, transaction: int, last: int, main: tuple[int, ...]) -> bytes:
    page = _PAGE.pack(number, 0, _META, 0, 0)
    page += _META_START.pack(MAGIC, VERSION, 0, (last + 1) * PAGE_BYTES)
    page += _DATABASE.pack(PAGE_BYTES, _NUMERIC_KEYS, *_EMPTY)
    page += _DATABASE.pack(0, 0, *main) + _META_END.pack(last, transaction)
    return page.ljust(PAGE_BYTES, b"\0")
