"""Write a tree as torch.save would: the same records in the same places."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ptools.checkpoint.data.archive import Record, directory, lay_out, whole
from ptools.checkpoint.data.content import Content, Literal
from ptools.checkpoint.data.copying import Copied, write_all
from ptools.checkpoint.formats.torch_zip import LARGEST_PICKLE, read_torch_zip
from ptools.checkpoint.output.writing import Plan
from ptools.checkpoint.pickles.nodes import Node, storages
from ptools.checkpoint.pickles.pickling import pickled


def plan_torch_file(root: Node, folder: str) -> Plan:
    """Where each storage of a tree goes. The top `folder` is the file's stem in torch's own."""
    return plan_records(torch_records(root, folder))


def plan_records(records: Sequence[Record]) -> Plan:
    """A torch file with these records, of which the first is its pickle."""
    end = records[-1].end
    placed = tuple((record.payload_at, record.content) for record in records)

    def finish(descriptor: int, copied: Sequence[Copied]) -> None:
        entries = []
        for record, copy in zip(records, copied, strict=True):
            write_all(descriptor, record.header(), record.header_at)
            write_all(descriptor, record.descriptor(copy.crc), copy.end)
            entries.append(record.entry(copy.crc))
        write_all(descriptor, directory(entries, end), end)

    def check(path: Path) -> bool:
        pickle = whole(records[0].content, LARGEST_PICKLE)
        return pickled(read_torch_zip(path).root, lambda storage: storage.key) == pickle

    return Plan(placed, file_size(records), finish, check)


def torch_records(root: Node, folder: str) -> list[Record]:
    """The records of a torch file in their places."""
    found = storages(root)
    keys = {id(storage): str(index) for index, storage in enumerate(found)}
    pickle = pickled(root, lambda storage: keys[id(storage)])
    contents: list[tuple[str, Content]] = [
        ("data.pkl", Literal(pickle)),
        (".format_version", Literal(b"1")),
        (".storage_alignment", Literal(b"64")),
        ("byteorder", Literal(b"little")),
    ]
    contents += [(f"data/{index}", storage.content) for index, storage in enumerate(found)]
    return lay_out(folder, [*contents, ("version", Literal(b"3\n"))])


def file_size(records: Sequence[Record]) -> int:
    """The bytes of a file with these records."""
    end = records[-1].end
    return end + len(directory([record.entry(0) for record in records], end))
