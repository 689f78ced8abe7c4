import json
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from PIL import Image, ImageChops
from shards import write_shard
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ptools.errors import PtoolsError, UsageError
from ptools.image_lmdb.errors import NotADatabase
from ptools.image_lmdb.thumbnails import thumbnail
from ptools.image_lmdb.view import view

Colour = tuple[int, int, int]
PAPER, TILE = (246, 246, 246), (216, 216, 216)


def plain(colour: Colour, size: tuple[int, int] = (40, 40), file_format: str = "PNG") -> bytes:
    output = BytesIO()
    Image.new("RGB", size, colour).save(output, file_format)
    return output.getvalue()


def pack(path: Path, images: dict[str, list[bytes]]) -> Path:
    found = (
        (file, f"{label}/{index}", label)
        for label, files in enumerate(images.values())
        for index, file in enumerate(files)
    )
    return write_shard(path, found, list(images))


def read(log_dir: Path) -> Any:
    events = EventAccumulator(str(log_dir))
    events.Reload()
    return events


def shown(log_dir: Path, tag: str) -> Image.Image:
    (event,) = read(log_dir).Images(tag)
    picture = Image.open(BytesIO(event.encoded_image_string))
    assert picture.size == (event.width, event.height)
    return picture


def test_each_class_has_a_grid_and_the_set_a_table(folder: Path) -> None:
    red, blue = plain((255, 0, 0)), plain((0, 0, 255))
    path = pack(folder / "i.mdb", {"cat": [red] * 3, "dog": [blue] * 5, "none": []})
    report = view(path, folder / "log", size=20)
    assert report.tags == ("cat", "dog")
    assert (report.images, report.classes, report.shown, report.undecodable) == (8, 3, 8, 0)
    assert sorted(read(folder / "log").Tags()["images"]) == ["cat", "dog"]
    cat = shown(folder / "log", "cat")
    assert cat.size == (2 * 24 + 4, 2 * 24 + 4)
    assert cat.getcolors() == [(3 * 400, (255, 0, 0)), (52 * 52 - 3 * 400, PAPER)]
    (table,) = read(folder / "log").Tensors("classes")
    text = table.tensor_proto.string_val[0].decode()
    assert "images: 8; classes: 3, shown: 2" in text
    assert f"| dog | 5 | 5 | 0 | {5 * len(blue)} B |" in text


def test_the_images_are_spread_over_the_class(folder: Path) -> None:
    greys = [plain((index, index, index)) for index in range(200)]
    view(pack(folder / "i.mdb", {"a": greys}), folder / "log", per_class=4, size=10)
    grid = shown(folder / "log", "a")
    places = [(8 + 14 * (i % 2), 8 + 14 * (i // 2)) for i in range(4)]
    assert [grid.getpixel(place) for place in places] == [(g, g, g) for g in (0, 50, 100, 150)]


def test_the_classes_are_spread_over_the_set(folder: Path) -> None:
    images = {f"c{index:02}": [plain((index, 0, 0))] for index in range(40)}
    report = view(pack(folder / "i.mdb", images), folder / "log", max_classes=4, size=8)
    assert report.tags == ("c00", "c10", "c20", "c30")
    assert report.classes == 40


def test_images_that_do_not_decode_are_crossed_tiles(folder: Path) -> None:
    whole = plain((9, 99, 9), (300, 300), "JPEG")
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    output = BytesIO()
    Image.fromarray(noise).save(output, "PNG")
    cut = output.getvalue()[:9000]
    bad = [b"", b"text", cut, cut + output.getvalue()[-12:], b"%!PS-Adobe-3.0 EPSF-3.0\n"]
    path = pack(folder / "i.mdb", {"a": [whole, *bad]})
    report = view(path, folder / "log", size=24)
    assert (report.shown, report.undecodable) == (6, 5)
    grid = shown(folder / "log", "a")
    tiles = [grid.crop((x, y, x + 24, y + 24)) for y in (4, 32) for x in (4, 32, 60)]
    assert np.allclose(np.asarray(tiles[0]), (9, 99, 9), atol=3)
    for tile in tiles[1:]:
        assert tile.getpixel((0, 0)) == TILE
        assert ImageChops.difference(tile, tiles[1]).getbbox() is None
        assert tile.getpixel((11, 11)) != TILE


def test_an_image_that_changed_on_the_disk_is_a_crossed_tile(folder: Path) -> None:
    red, green = plain((255, 0, 0)), plain((0, 255, 0))
    path = pack(folder / "i.mdb", {"a": [red, green]})
    path.write_bytes(path.read_bytes().replace(green, green[:-20] + b"x" * 20))
    report = view(path, folder / "log", size=16)
    assert (report.shown, report.undecodable) == (2, 1)
    assert report.grids[0].shown_bytes == len(red)


@pytest.mark.parametrize("size", [(400, 100), (100, 400), (1, 3000), (3, 2)])
def test_thumbnails_keep_the_shape_of_the_image(size: tuple[int, int]) -> None:
    tile = thumbnail(plain((1, 2, 3), size), 64)
    assert tile is not None and tile.size == (64, 64)
    counts = {colour: count for count, colour in tile.getcolors() or []}
    long, short = max(size), min(size)
    assert counts[(1, 2, 3)] == 64 * max(1, round(64 * short / long))
    assert sum(counts.values()) == 64 * 64


def test_class_names_become_tags_of_their_own(folder: Path) -> None:
    names = ["a b", "a|b", "ünï", "n/1", "\udcff", "classes", ""]
    path = pack(folder / "i.mdb", {name: [plain((1, 1, 1))] for name in names})
    report = view(path, folder / "log", size=8)
    assert report.tags == ("a_b", "a_b-2", "ünï", "n/1", "_", "classes-2", "_-2")
    assert [grid.name for grid in report.grids] == names
    assert sorted(read(folder / "log").Tags()["images"]) == sorted(report.tags)


def test_foreign_databases_can_be_seen_too(folder: Path) -> None:
    with (
        lmdb.open(str(folder / "sr.lmdb"), map_size=1 << 20) as environment,
        environment.begin(write=True) as transaction,
    ):
        transaction.put(b"0001", plain((7, 8, 9)))
    report = view(folder / "sr.lmdb", folder / "log")
    assert report.tags == ("sr",)
    assert (7, 8, 9) in [colour for _, colour in shown(folder / "log", "sr").getcolors() or []]


def test_a_second_view_leaves_the_first(folder: Path) -> None:
    path = pack(folder / "i.mdb", {"a": [plain((1, 1, 1))]})
    view(path, folder / "log", size=8)
    view(path, folder / "log", size=8)
    assert len(list((folder / "log").iterdir())) == 2


def test_the_report_is_json(folder: Path) -> None:
    report = view(pack(folder / "i.mdb", {"a": [plain((1, 1, 1))]}), folder / "log")
    document = json.loads(json.dumps(report.to_dict()))
    assert document["log_dir"] == str(folder / "log")
    assert document["grids"][0]["tag"] == "a"
    assert (document["shown"], document["undecodable"]) == (1, 0)


def test_what_cannot_be_shown_is_an_error(folder: Path) -> None:
    path = pack(folder / "i.mdb", {"a": [plain((1, 1, 1))]})
    with pytest.raises(PtoolsError, match="no images"):
        view(pack(folder / "none.mdb", {}), folder / "log")
    with pytest.raises(NotADatabase):
        view(folder / "missing.lmdb", folder / "log")
    with pytest.raises(UsageError, match="no grid"):
        view(path, folder / "log", per_class=1_000_000)
    with pytest.raises(UsageError, match="no grid"):
        view(path, folder / "log", size=0)
    assert not (folder / "log").exists()
    (folder / "log").write_text("a file")
    with pytest.raises(UsageError, match="cannot write"):
        view(path, folder / "log")


def test_viewing_does_not_import_torch(folder: Path) -> None:
    path = pack(folder / "i.mdb", {"a": [plain((1, 1, 1))]})
    code = (
        "import sys; from ptools.image_lmdb.view import view; "
        f"view({str(path)!r}, {str(folder / 'log')!r}); "
        "assert not {'torch', 'cv2', 'tensorflow'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
