"""Files that are written without liblmdb, as liblmdb and its checker see them."""

import random
from pathlib import Path

import lmdb
import pytest
from lmdb.verify import verify
from shards import write_shard

from ptools.image_lmdb.pages import open_tree, values

EDGES = [0, 1, 2020, 2021, 2022, 2023, 2024, 4079, 4080, 4081, 8175, 8176, 8177, 70_000]


def images_of(lengths: list[int]) -> list[tuple[bytes, str, int]]:
    generator = random.Random(0)
    return [
        (generator.randbytes(length), f"c/{index}.png", 0) for index, length in enumerate(lengths)
    ]


@pytest.mark.parametrize(
    "lengths",
    [
        [],
        [5],
        [5000],
        EDGES,
        EDGES[::-1] * 30,
        [3000] * 157,  # as many references as fit a leaf, the record's among them, and one more
        [3000] * 156,
        [3000] * 155,
        [random.Random(1).choice(EDGES[:-1]) for _ in range(3000)],
    ],
)
def test_liblmdb_finds_every_value(lengths: list[int], folder: Path) -> None:
    images = images_of(lengths)
    file = write_shard(folder / "data.mdb", images, ["c"])
    assert not verify(str(file))
    with lmdb.open(str(file), subdir=False, readonly=True, lock=False) as environment:
        assert environment.stat()["entries"] == len(images) + 1
        with environment.begin() as transaction:
            *found, (key, _) = transaction.cursor()
            assert key == b"\xffmeta"
            expected = [(n.to_bytes(8, "big"), data) for n, (data, _, _) in enumerate(images)]
            assert found == expected
            for name, data in expected:
                assert transaction.get(name) == data


@pytest.mark.parametrize("images", [202, 203, 205, 46_000, 46_200, 60_000])
def test_any_number_of_leaves_has_a_root(images: int, folder: Path) -> None:
    file = write_shard(folder / "data.mdb", [(b"x", "c/x.png", 0)] * images, ["c"])
    assert not verify(str(file))
    with lmdb.open(str(file), subdir=False, readonly=True, lock=False) as environment:
        status = environment.stat()
        assert status["depth"] == (1 if images < 203 else 2 if images < 46_100 else 3)
        with environment.begin() as transaction:
            for index in random.Random(0).sample(range(images), 200):
                assert transaction.get(index.to_bytes(8, "big")) == b"x"
            assert transaction.get(images.to_bytes(8, "big")) is None


def test_liblmdb_can_write_on(folder: Path) -> None:
    images = images_of(EDGES * 20)
    file = write_shard(folder / "data.mdb", images, ["c"])
    with lmdb.open(str(file), subdir=False, map_size=64 << 20, lock=False) as environment:
        with environment.begin(write=True) as transaction:
            for index in range(0, len(images), 3):
                assert transaction.delete(index.to_bytes(8, "big"))
            transaction.put(b"\x80more", bytes(10_000))
        with environment.begin() as transaction:
            left = [data for index, (data, _, _) in enumerate(images) if index % 3]
            assert [value for _, value in transaction.cursor()][: len(left)] == left
    assert not verify(str(file))
    with file.open("rb") as opened:
        tree = open_tree(opened.fileno(), "data.mdb")
        assert len(list(values(tree))) == len(left) + 2
