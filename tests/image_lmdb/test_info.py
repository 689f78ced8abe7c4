import json
import statistics
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest

from ptools.errors import PtoolsError
from ptools.image_lmdb.engine import pack_lmdb
from ptools.image_lmdb.info import describe


def test_a_set_is_described(
    images: Callable[..., Path], folder: Path, picture: Callable[..., bytes]
) -> None:
    source = images(each=7)
    (source / "class 1" / "big.jpg").write_bytes(picture(99, 300))
    (source / "class 1" / "bad.jpg").write_bytes(b"no image")
    (source / "empty").mkdir()
    pack_lmdb(source, "set.lmdb")
    info = describe("set.lmdb")
    sizes = [f.stat().st_size for f in source.rglob("*.jpg") if f.name != "bad.jpg"]
    assert (info.kind, info.version, info.images) == ("ptools-images", 1, 22)
    assert list(info.classes.items()) == [
        ("class 0", 7),
        ("class 1", 8),
        ("class 2", 7),
        ("empty", 0),
    ]
    assert info.bytes == sum(sizes)
    assert info.smallest_bytes == min(sizes)
    assert info.median_bytes == statistics.median_low(sizes)
    assert info.largest_bytes == max(sizes)
    assert info.file_bytes == (folder / "set.lmdb/data.mdb").stat().st_size
    assert info.skipped == 1
    assert json.loads(json.dumps(info.to_dict()))["shards"][0]["file"] == "data.mdb"


def test_the_shards_of_a_set_are_described_alone_and_together(images: Callable[..., Path]) -> None:
    pack_lmdb(images(each=20, size=200), "set.lmdb", shard_size=150 << 10)
    whole = describe("set.lmdb")
    assert len(whole.shards) > 1
    alone = [describe(f"set.lmdb/{shard.file}") for shard in whole.shards]
    assert [one.images for one in alone] == [shard.images for shard in whole.shards]
    assert sum(one.bytes or 0 for one in alone) == whole.bytes
    for name, count in whole.classes.items():
        assert sum(one.classes[name] for one in alone) == count


def test_a_foreign_database_is_described(picture: Callable[..., bytes], folder: Path) -> None:
    opened = lmdb.open("foreign", map_size=1 << 20)
    with opened as environment, environment.begin(write=True) as writing:
        for index in range(5):
            writing.put(f"{'cat' if index < 2 else 'dog'}/{index}.jpg".encode(), picture(index))
    info = describe("foreign")
    assert info.kind == "image files by name"
    assert info.classes == {"cat": 2, "dog": 3}
    assert (info.images, info.bytes, info.version) == (5, None, None)
    assert info.file_bytes == (folder / "foreign/data.mdb").stat().st_size


@pytest.mark.parametrize("name", ["missing", "text.mdb"])
def test_what_is_no_database_is_an_error(name: str, folder: Path) -> None:
    (folder / "text.mdb").write_text("text")
    with pytest.raises(PtoolsError):
        describe(name)
