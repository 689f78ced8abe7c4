"""Where the values lie in an LMDB 0.9 file, read without liblmdb: no map, no lock, no SIGBUS.

Layout from liblmdb's mdb.c (MDB_page, MDB_node, MDB_meta), for 64-bit little-endian machines: two
meta pages, then a B-tree of pages with 16-byte headers; a value that is too long for a leaf has
pages of its own, one after the other, behind one header.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ptools.image_lmdb.errors import DamagedDatabase, NotADatabase

HEADER = 16  # bytes, of a page
MAGIC = 0xBEEFC0DE
VERSION = 1
_META = struct.Struct("<II16xI44x4xH2x24xQQQQ")  # magic, version, page size, flags of the tree ...
_PAGE = struct.Struct("<10xHHH")  # flags, and the bounds of its free space
BRANCH, LEAF = 0x01, 0x02
OVERFLOWS, _SUBDATA, _DUPLICATES = 0x01, 0x02, 0x04  # flags of a node
NODE = struct.Struct("<HHHH")  # length, low and high half; flags; length of the key
_LEAST_NODE = 12  # bytes a key takes in a leaf: its place, eight of the node, itself, even
_MOST_LEVELS = 32  # liblmdb's CURSOR_STACK


@dataclass(frozen=True, slots=True)
class Tree:
    """The root of the main database in an open file, as its newest meta page has it."""

    descriptor: int
    name: str  # of the file, for messages
    page_size: int
    root: int
    entries: int
    last_page: int
    transaction: int


class Value(NamedTuple):
    """A key, and where in the file its value lies."""

    key: bytes
    offset: int
    length: int


def open_tree(descriptor: int, name: str) -> Tree:
    """Read the meta pages of a file and check that all its pages are there.

    Raises:
        NotADatabase: it is no LMDB file of format 1 (liblmdb 0.9).
        DamagedDatabase: it is shorter than its meta page says.
    """
    first = os.pread(descriptor, 256, 0)
    fields = _meta(first, name)
    page_size = fields[2] or 4096
    if page_size not in (1 << shift for shift in range(9, 17)):
        raise DamagedDatabase(f"{name} has pages of {page_size} bytes, which cannot be", _RESTORE)
    second = os.pread(descriptor, 256, page_size)
    if len(second) < HEADER + _META.size:
        raise _cut(name, len(first) + len(second), 2 * page_size)
    newest = max(fields, _meta(second, name), key=lambda meta: meta[-1])
    _, _, _, flags, entries, root, last_page, transaction = newest
    if flags:
        raise NotADatabase(f"{name} allows duplicate or numeric keys, which no image set needs")
    if entries * _LEAST_NODE > (last_page + 1) * page_size:
        raise DamagedDatabase(f"{name} cannot hold the {entries:,} keys it says", _RESTORE)
    tree = Tree(descriptor, name, page_size, root, entries, last_page, transaction)
    size = os.fstat(descriptor).st_size
    if size < (last_page + 1) * page_size:
        raise _cut(name, size, (last_page + 1) * page_size)
    return tree


_RESTORE = "copy it again, or pack it again"


def _cut(name: str, size: int, expected: int) -> DamagedDatabase:
    message = f"{name} is cut short: {size:,} of {expected:,} bytes are there"
    return DamagedDatabase(message, _RESTORE)


def _meta(page: bytes, name: str) -> tuple[int, ...]:
    if len(page) < HEADER + _META.size:
        raise NotADatabase(f"{name} is no LMDB file: it has only {len(page)} bytes")
    fields = _META.unpack_from(page, HEADER)
    if fields[0] != MAGIC:
        raise NotADatabase(f"{name} is no LMDB file")
    if fields[1] != VERSION:
        raise NotADatabase(
            f"{name} has LMDB's data format {fields[1] & 0xFFFF}; only format 1 is read here",
            hint="write it with LMDB 0.9 (mdb_dump and mdb_load convert)",
        )
    return fields


def values(tree: Tree) -> Iterator[Value]:
    """All keys in their order, with the place of each value.

    Raises:
        DamagedDatabase: a page is not what its place in the tree says.
    """
    count = 0
    for number, page in _leaves(tree, tree.root, 0) if tree.entries else ():
        nodes = _nodes(tree, page, number)
        count += len(nodes)
        if count > tree.entries:  # pages that lead back to each other would never end
            break
        for node in nodes:
            yield _leaf_value(tree, page, number, node)
    if count != tree.entries:
        message = f"{tree.name} does not hold the {tree.entries:,} keys it says"
        raise DamagedDatabase(message, _RESTORE)


def last_value(tree: Tree) -> Value | None:
    """The value with the greatest key."""
    if not tree.entries:
        return None
    number = tree.root
    for _ in range(_MOST_LEVELS):
        page = _read(tree, number)
        *_, node = _nodes(tree, page, number)
        if _flags(page) & LEAF:
            return _leaf_value(tree, page, number, node)
        number = _child(page, node)
    raise _damaged(tree, number)


def _leaves(tree: Tree, number: int, level: int) -> Iterator[tuple[int, bytes]]:
    """The leaf pages below a page, in the order of their keys."""
    page = _read(tree, number)
    if _flags(page) & LEAF:
        yield number, page
    elif level == _MOST_LEVELS:
        raise _damaged(tree, number)
    else:
        for node in _nodes(tree, page, number):
            yield from _leaves(tree, _child(page, node), level + 1)


def _read(tree: Tree, number: int) -> bytes:
    if not 2 <= number <= tree.last_page:
        raise _damaged(tree, number)
    page = os.pread(tree.descriptor, tree.page_size, number * tree.page_size)
    if len(page) < tree.page_size:
        raise _damaged(tree, number)
    if int.from_bytes(page[:8], "little") != number or _flags(page) not in (BRANCH, LEAF):
        raise _damaged(tree, number)
    return page


def _flags(page: bytes) -> int:
    return int.from_bytes(page[10:12], "little") & ~0x10  # without "dirty", which liblmdb may leave


def _nodes(tree: Tree, page: bytes, number: int) -> tuple[int, ...]:
    """The places of the nodes in a page; each has its eight bytes and its key within the page."""
    _, lower, upper = _PAGE.unpack_from(page)
    count = (lower - HEADER) // 2
    if not HEADER + 2 <= lower <= upper <= tree.page_size:
        raise _damaged(tree, number)
    nodes: tuple[int, ...] = struct.unpack_from(f"<{count}H", page, HEADER)
    if min(nodes) < upper or max(nodes) + 8 > tree.page_size:
        raise _damaged(tree, number)
    return nodes


def _child(page: bytes, node: int) -> int:
    return int.from_bytes(page[node : node + 6], "little")


def _leaf_value(tree: Tree, page: bytes, number: int, node: int) -> Value:
    low, high, flags, key_length = NODE.unpack_from(page, node)
    length = low | high << 16
    if flags & (_SUBDATA | _DUPLICATES):
        raise NotADatabase(f"{tree.name} holds named databases or duplicate keys")
    start = node + 8 + key_length
    end = start + (8 if flags & OVERFLOWS else length)
    if end > tree.page_size:
        raise _damaged(tree, number)
    key = page[node + 8 : start]
    if not flags & OVERFLOWS:
        return Value(key, number * tree.page_size + start, length)
    first = int.from_bytes(page[start:end], "little")
    if not 2 <= first <= tree.last_page:
        raise _damaged(tree, number)
    offset = first * tree.page_size + HEADER
    if offset + length > (tree.last_page + 1) * tree.page_size:
        raise _damaged(tree, number)
    return Value(key, offset, length)


def _damaged(tree: Tree, number: int) -> DamagedDatabase:
    message = f"{tree.name} is damaged: page {number} is not what it should be"
    return DamagedDatabase(message, _RESTORE)
