import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from shards import write_shard

from ptools.errors import PtoolsError, UsageError
from ptools.image_lmdb import export as module
from ptools.image_lmdb.engine import pack_lmdb
from ptools.image_lmdb.export import export_wds


@pytest.fixture
def packed(images: Callable[..., Path], folder: Path, picture: Callable[..., bytes]) -> Path:
    source = images(each=8)
    (source / "class 0" / os.fsdecode(b"caf\xe9.PNG")).write_bytes(picture(77, kind="PNG"))
    pack_lmdb(source, "set.lmdb")
    return folder / "set.lmdb"


def members(output: str) -> dict[str, bytes]:
    found = {}
    for shard in sorted(Path(output).iterdir()):
        with tarfile.open(shard) as tar:
            for member in tar:
                content = tar.extractfile(member)
                assert content is not None
                found[member.name] = content.read()
    return found


def test_tarfile_reads_what_imagefolder_lists(packed: Path, torchvision: Any) -> None:
    report = export_wds(packed, "wds")
    truth = torchvision.datasets.ImageFolder("imgs")
    found = members("wds")
    assert len(found) == 3 * len(truth)
    for index, (path, label) in enumerate(truth.samples):
        key = f"{index:08d}"
        assert found[key + Path(path).suffix.lower()] == Path(path).read_bytes()
        assert found[key + ".cls"] == str(label).encode()
        assert json.loads(found[key + ".json"]) == {
            "path": os.path.relpath(path, "imgs"),
            "class": truth.classes[label],
        }
    assert (report.images, report.shards) == (len(truth), 1)
    assert report.bytes == sum(Path(path).stat().st_size for path, _ in truth.samples)
    assert report.file_bytes == Path("wds/shard-000000.tar").stat().st_size
    assert report.to_dict()["output"] == "wds"


def test_webdataset_reads_it(packed: Path, torchvision: Any, monkeypatch: Any) -> None:
    wds = pytest.importorskip("webdataset")
    export_wds(packed, "wds", shard_size=20_000)
    truth = torchvision.datasets.ImageFolder("imgs")
    shards = sorted(map(str, Path("wds").iterdir()))
    assert len(shards) > 1
    samples = list(wds.WebDataset(shards, shardshuffle=False).decode("pil"))
    assert [sample["cls"] for sample in samples] == truth.targets
    for sample, (image, _) in zip(samples, truth, strict=True):
        decoded = sample.get("jpg") or sample["png"]
        assert decoded.convert("RGB").tobytes() == image.tobytes()


def test_no_file_is_larger_than_asked(packed: Path) -> None:
    report = export_wds(packed, "wds", shard_size=20_000)
    sizes = [file.stat().st_size for file in Path("wds").iterdir()]
    assert len(sizes) == report.shards > 1
    assert max(sizes) <= 20_000
    assert sum(sizes) == report.file_bytes
    assert export_wds(packed, "tiny", shard_size=1).shards == report.images
    assert export_wds(packed, "whole", shard_size=0).shards == 1
    assert members("wds") == members("tiny") == members("whole")


def test_the_same_set_gives_the_same_bytes(packed: Path) -> None:
    export_wds(packed, "one")
    export_wds(packed, "two")
    assert Path("one/shard-000000.tar").read_bytes() == Path("two/shard-000000.tar").read_bytes()


@pytest.mark.parametrize(
    "path", ["cat/evil.pickle", "cat/evil.PYD", "cat/x.cls", "cat/x.json", "cat/x", "cat/x.j\npg"]
)
def test_a_path_does_not_choose_how_it_is_decoded(path: str, folder: Path) -> None:
    write_shard(folder / "crafted.mdb", [(b"cos\nsystem\n", path, 0)], ["cat"])
    export_wds("crafted.mdb", "wds")
    assert list(members("wds")) == ["00000000.bin", "00000000.cls", "00000000.json"]


def test_what_exists_is_never_touched(packed: Path, folder: Path) -> None:
    (folder / "wds").mkdir()
    (folder / "wds" / "mine").write_text("mine")
    with pytest.raises(UsageError, match="already exists"):
        export_wds(packed, "wds")
    (folder / "other.part").mkdir()
    (folder / "other.part" / "shard-000000.tar").write_text("mine")
    with pytest.raises(UsageError, match="did not make it"):
        export_wds(packed, "other")
    assert (folder / "wds" / "mine").exists()
    assert (folder / "other.part" / "shard-000000.tar").read_text() == "mine"


def test_a_run_that_failed_is_begun_anew(packed: Path, folder: Path) -> None:
    def stop(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_wds(packed, "wds", shard_size=1, progress=stop)
    assert list((folder / "wds.part").glob("*.tar"))
    assert not (folder / "wds").exists()
    export_wds(packed, "wds")
    assert [file.name for file in Path("wds").iterdir()] == ["shard-000000.tar"]


def test_a_full_disk_is_told_before_the_first_byte(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "free_space", lambda path: 3)
    with pytest.raises(PtoolsError, match="3 B are free"):
        export_wds(packed, "wds")
    with pytest.raises(UsageError, match="is no size"):
        export_wds(packed, "wds", shard_size=-1)
