import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.serialization import config
from trees import write_plain, write_tree

from ptools.checkpoint import CorruptCheckpoint, fix_ckpt
from ptools.checkpoint.data.archive import directory, lay_out, read_archive, whole
from ptools.checkpoint.data.content import (
    PIECE,
    Content,
    Deflated,
    FileRange,
    Joined,
    Literal,
    part_of,
)
from ptools.checkpoint.data.copying import checksums, combined_crc, write_contents
from ptools.checkpoint.formats.torch_zip import read_torch_zip
from ptools.checkpoint.output.torch_file import file_size, plan_records, torch_records

BIG = (1 << 32) + (64 << 20)  # bytes of a storage that 32 bits do not count


def no_news(amount: float) -> None:
    pass


def objects() -> dict[str, Any]:
    whole = torch.rand(3, 5)
    return {
        "one": {"w": torch.rand(4, 4)},
        "none": {"epoch": 1},
        "empty": {"a": torch.empty(0), "b": torch.rand(1), "c": torch.empty(0, 3)},
        "shared": {"a": whole, "b": whole[1:], "c": whole.t()},
        "odd": [torch.ones(size, dtype=torch.uint8) for size in (1, 2, 3, 63, 64, 65, 127, 1000)],
        "many": {f"layer.{index}.weight": torch.rand(index % 7) for index in range(300)},
        "long": {"x" * 66_000: torch.rand(2)},
    }


@pytest.mark.parametrize("kind", objects())
@pytest.mark.parametrize("name", ["model.pt", "a.b.pth.tar", "x" * 100 + ".ckpt"])
def test_the_layout_is_that_of_torch_save_byte_for_byte(
    tmp_path: Path, kind: str, name: str
) -> None:
    theirs, ours = tmp_path / name, tmp_path / "ours" / name
    ours.parent.mkdir()
    torch.save(objects()[kind], theirs)
    records = torch_records(read_torch_zip(theirs).root, Path(name).stem)
    write_plain(plan_records(records), ours)
    # Torch appends one more record, a checksum of the others: data/serialization_id.
    end = records[-1].end
    assert ours.read_bytes()[:end] == theirs.read_bytes()[:end]
    assert ours.stat().st_size == file_size(records)
    assert entries(ours).items() <= entries(theirs).items()
    assert {
        entry.rpartition("/")[2] for entry in entries(theirs).keys() - entries(ours).keys()
    } == {"serialization_id"}


def entries(path: Path) -> dict[str, tuple[object, ...]]:
    """What the central directory says of each record."""
    fields = "header_offset file_size compress_size CRC flag_bits compress_type extra date_time"
    fields += " create_version create_system extract_version external_attr internal_attr comment"
    with zipfile.ZipFile(path) as archive:
        return {
            entry.filename: tuple(getattr(entry, field) for field in fields.split())
            for entry in archive.infolist()
        }


@pytest.fixture
def sparse(tmp_path: Path) -> Any:
    """Save without writing the weights: the file has holes in their place."""
    made: list[Path] = []

    def save(name: str, *sizes: int) -> Path:
        path = tmp_path / name
        made.append(path)
        with torch.serialization.skip_data(), torch.device("meta"):
            value = [torch.empty(size, dtype=torch.uint8) for size in sizes]
        with torch.serialization.skip_data():
            real = [torch.empty_like(tensor, device="cpu") for tensor in value]
            torch.save(real, path)
        assert path.stat().st_blocks * 512 < 64 << 20
        return path

    yield save
    for path in made:
        path.unlink(missing_ok=True)


@pytest.mark.parametrize(
    "sizes",
    [(BIG, 3), (5, BIG, 7, 9), (1 << 32, 1), ((1 << 32) - 1, 1), ((1 << 32) - 2, 1, 2)],
)
def test_headers_of_more_than_four_gib_are_those_of_torch(
    sparse: Callable[..., Path], sizes: tuple[int, ...]
) -> None:
    path = sparse("big.pt", *sizes)
    records = torch_records(read_torch_zip(path).root, "big")
    end = records[-1].end
    with path.open("rb") as file:
        for record in records:
            file.seek(record.header_at)
            header = without_compressed_size(record.header())
            assert without_compressed_size(file.read(len(header))) == header, record.name
            if record.content.nbytes:
                crc = read_archive(path)[record.name.decode().partition("/")[2]].crc
                assert crc is not None
                file.seek(record.payload_at + record.content.nbytes)
                descriptor = record.descriptor(crc)
                assert file.read(len(descriptor)) == descriptor, record.name
    theirs = central_directory(path)
    crcs = {name: struct.unpack_from("<I", entry, 16)[0] for name, entry in theirs.items()}
    assert {record.name: record.entry(crcs[record.name]) for record in records}.items() <= (
        theirs.items()
    )
    assert len(directory([], end)) == 98


def without_compressed_size(header: bytes) -> bytes:
    """Of a large record, torch leaves that 0 in the local header: it is known only afterwards."""
    at = 30 + header[26] + 12
    large = header[at - 12 : at - 10] == b"\1\0" and header[at - 10] >= 16
    return header[:at] + bytes(8) + header[at + 8 :] if large else header


def central_directory(path: Path) -> dict[bytes, bytes]:
    """The entries as they are."""
    with path.open("rb") as file:
        with zipfile.ZipFile(file) as archive:
            file.seek(archive.start_dir)
        data = file.read()
    found, at = {}, 0
    while data[at : at + 4] == b"PK\1\2":
        name, extra, comment = struct.unpack_from("<HHH", data, at + 28)
        end = at + 46 + name + extra + comment
        found[data[at + 46 : at + 46 + name]] = data[at:end]
        at = end
    return found


def test_the_end_of_an_archive_is_that_of_torch(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save({"w": torch.rand(3)}, path)
    data = path.read_bytes()
    start = data.index(b"PK\1\2")
    assert directory(list(central_directory(path).values()), start) == data[start:]


def test_sixty_six_thousand_records_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "many.pt"
    contents: list[tuple[str, Content]] = [(f"data/{n}", Literal(b"x")) for n in range(66_000)]
    records = lay_out("many", contents)
    write_plain(plan_records(records), path)
    assert len(read_archive(path)) == 66_000


def storages_of(value: Any) -> list[bytes]:
    return [bytes(tensor.untyped_storage()) for tensor in value.values()]


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("computed", [False, True])
@pytest.mark.parametrize("debug", ["0", "1"])
@pytest.mark.parametrize("kind", ["shared", "empty", "many"])
def test_torch_loads_what_is_written_in_each_of_its_ways(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    mmap: bool,
    computed: bool,
    debug: str,
) -> None:
    """With TORCH_SERIALIZATION_DEBUG torch compares the offsets it computes with the file's."""
    value = objects()[kind]
    source, output = tmp_path / "a.pt", tmp_path / "b.pt"
    torch.save({"module." + name: tensor for name, tensor in value.items()}, source)
    fix_ckpt(source, output)
    monkeypatch.setenv("TORCH_SERIALIZATION_DEBUG", debug)
    with config.patch("load.calculate_storage_offsets", computed):
        loaded = torch.load(output, weights_only=True, mmap=mmap)
    assert list(loaded) == list(value)
    assert storages_of(loaded) == storages_of(value)
    for name, tensor in value.items():
        assert loaded[name].stride() == tensor.stride()
        assert loaded[name].storage_offset() == tensor.storage_offset()


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("computed", [False, True])
def test_a_patched_file_is_sound_and_loads_as_before(
    tmp_path: Path, mmap: bool, computed: bool
) -> None:
    value = objects()["shared"]
    path = tmp_path / "a.pt"
    torch.save({"module." + name: tensor for name, tensor in value.items()}, path)
    before = path.read_bytes()
    fix_ckpt(path, inplace=True)
    assert path.read_bytes().startswith(before)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    with config.patch("load.calculate_storage_offsets", computed):
        loaded = torch.load(path, weights_only=True, mmap=mmap)
    assert list(loaded) == list(value)
    assert storages_of(loaded) == storages_of(value)


@pytest.mark.parametrize("kind", objects())
def test_the_checksums_of_all_records_are_right(tmp_path: Path, kind: str) -> None:
    source, output = tmp_path / "a.pt", tmp_path / "b.pt"
    torch.save(objects()[kind], source)
    write_tree(read_torch_zip(source).root, output)
    with zipfile.ZipFile(output) as archive:
        assert archive.testzip() is None


def test_combined_checksums_are_those_of_zlib() -> None:
    numbers = random.Random(0)
    for size in (0, 1, 7, 64, 1000, 65_536):
        first, second = numbers.randbytes(numbers.randrange(100)), numbers.randbytes(size)
        found = combined_crc(zlib.crc32(first), zlib.crc32(second), size)
        assert found == zlib.crc32(first + second)


def test_a_checksum_of_five_gib_is_combined_from_that_of_its_parts() -> None:
    """Zeros, whose checksum doubling gives without reading them."""
    crc, nbytes = zlib.crc32(b"\0"), 1
    while nbytes < 1 << 20:
        crc, nbytes = combined_crc(crc, crc, nbytes), 2 * nbytes
    assert crc == zlib.crc32(bytes(1 << 20))
    total = 0
    for _ in range(5 << 10):
        total = combined_crc(total, crc, nbytes)
    doubled, size = crc, nbytes
    while size < 4 << 30:
        doubled, size = combined_crc(doubled, doubled, size), 2 * size
    gib = crc
    for _ in range(10):
        gib = combined_crc(gib, gib, nbytes)
        nbytes *= 2
    assert combined_crc(doubled, gib, 1 << 30) == total


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 17 * PIECE, 40 * PIECE + 3])
def test_contents_of_any_size_are_copied_and_checksummed(tmp_path: Path, size: int) -> None:
    data = random.Random(size).randbytes(size)
    source = tmp_path / "source"
    source.write_bytes(b"before" + data)
    contents = [FileRange(source, 6, size), Literal(data), Joined((Literal(b"x"), Literal(data)))]
    told: list[float] = []
    with (tmp_path / "out").open("w+b") as out:
        placed = [(index * (size + 9), content) for index, content in enumerate(contents)]
        copied = write_contents(out.fileno(), placed, told.append)
        for copy, expected in zip(copied, (data, data, b"x" + data), strict=True):
            out.seek(copy.at)
            assert out.read(copy.content.nbytes) == expected
            assert copy.crc == zlib.crc32(expected)
    assert [copy.crc for copy in copied] == checksums(contents, no_news)
    assert sum(told) == 3 * size + 1


@pytest.fixture
def deflated(tmp_path: Path) -> Callable[[Any], Path]:
    """A torch file whose records somebody's zip tool compressed."""

    def save(value: Any) -> Path:
        stored, path = io.BytesIO(), tmp_path / "deflated.pt"
        torch.save(value, stored)
        with (
            zipfile.ZipFile(stored) as old,
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new,
        ):
            for name in old.namelist():
                new.writestr(name, old.read(name))
        return path

    return save


@pytest.mark.parametrize("options", [{}, {"dtype": "float64"}, {"compact": True}])
def test_deflated_records_come_out_as_they_went_in(
    tmp_path: Path, deflated: Callable[[Any], Path], options: dict[str, Any]
) -> None:
    ramp = torch.arange(1_000_003, dtype=torch.float32)
    value = {"zeros": torch.zeros(2_000_001), "ramp": ramp, "part": ramp[5:999_999]}
    value["noise"] = torch.rand(300_001)
    path, output = deflated(value), tmp_path / "out.pt"
    fix_ckpt(path, output, **options)
    loaded = torch.load(output, weights_only=True)
    for name, tensor in value.items():
        assert torch.equal(loaded[name], tensor.to(loaded[name].dtype))
    with zipfile.ZipFile(output) as archive:
        assert archive.testzip() is None
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}


def deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize("size", [0, 1, 1000, PIECE, 3 * PIECE + 5])
def test_deflated_contents_are_read_in_small_pieces(tmp_path: Path, size: int) -> None:
    for data in (bytes(size), random.Random(size).randbytes(size)):
        packed, path = deflate(data), tmp_path / "packed"
        path.write_bytes(b"xyz" + packed)
        content = Deflated(path, 3, len(packed), size)
        pieces = [(piece.nbytes, piece.read()) for piece in content.pieces()]
        assert b"".join(piece for _, piece in pieces) == data
        assert all(nbytes == len(piece) <= PIECE for nbytes, piece in pieces)
        for start, count in ((0, size), (size // 3, size // 2), (size, 0)):
            part = part_of(content, start, count)
            assert whole(part, size + 1) == data[start : start + count]


@pytest.mark.parametrize("says", [-1, 1, PIECE])
def test_deflated_contents_that_are_longer_or_shorter_are_refused(
    tmp_path: Path, says: int
) -> None:
    data = random.Random(1).randbytes(PIECE + 10)
    packed, path = deflate(data), tmp_path / "packed"
    path.write_bytes(packed)
    with pytest.raises(CorruptCheckpoint, match="than it says"):
        whole(Deflated(path, 0, len(packed), len(data) + says), 1 << 30)
    path.write_bytes(packed[:100] + b"\xff\xff" + packed[102:])
    with pytest.raises(CorruptCheckpoint):
        whole(Deflated(path, 0, len(packed), len(data), zlib.crc32(data)), 1 << 30)


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(100))
    with (
        pytest.raises(CorruptCheckpoint, match="28 bytes early"),
        (tmp_path / "out").open("wb") as out,
    ):
        write_contents(out.fileno(), [(0, FileRange(path, 64, 64))], no_news)


def test_an_archive_within_a_file_is_read_where_it_lies(tmp_path: Path) -> None:
    inner = tmp_path / "inner.pt"
    torch.save({"w": torch.arange(5.0)}, inner)
    data = inner.read_bytes()
    outer = tmp_path / "outer"
    outer.write_bytes(b"x" * 100 + data + data)
    for start in (100, 100 + len(data)):
        records = read_archive(outer, start, len(data))
        assert whole(records["data/0"], 100) == struct.pack("<5f", *range(5))
    assert outer.stat().st_size == 100 + 2 * len(data)
