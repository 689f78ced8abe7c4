"""Fixtures for the packer: folders of images, and what is in a packed set."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest
from PIL import Image

from ptools.image_lmdb import plan
from ptools.image_lmdb.engine import pack_lmdb
from ptools.image_lmdb.plan import Options, Plan
from ptools.image_lmdb.planning import make_plan
from ptools.image_lmdb.progress import Meter
from ptools.image_lmdb.store import Store, open_store

sys.path.insert(0, str(Path(__file__).parent))

Contents = dict[str, bytes]


@pytest.fixture
def picture() -> Callable[..., bytes]:
    """An image file of its own colours for each seed."""

    def encode(seed: int = 0, size: int = 24, kind: str = "JPEG") -> bytes:
        output = io.BytesIO()
        tile = Image.frombytes("RGB", (2, 2), bytes((seed * 37 + 61 * i) % 256 for i in range(12)))
        tile.resize((size, size), Image.Resampling.BICUBIC).save(output, kind)
        return output.getvalue()

    return encode


@pytest.fixture
def images(folder: Path, picture: Callable[..., bytes]) -> Callable[..., Path]:
    """Make a folder of class folders with `each` images; no two are the same."""

    def make(name: str = "imgs", classes: int = 3, each: int = 4, size: int = 24) -> Path:
        for index in range(classes * each):
            path = folder / name / f"class {index // each}" / f"{index:05d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(index, size))
        return folder / name

    return make


@pytest.fixture
def contents() -> Callable[[Path], Contents]:
    """Every file of a folder, by its relative path."""

    def read(root: Path) -> Contents:
        files = (path for path in root.rglob("*") if path.is_file())
        return {str(path.relative_to(root)): path.read_bytes() for path in files}

    return read


@pytest.fixture
def stored() -> Callable[[Path], list[tuple[bytes, bytes]]]:
    """All keys and values of the files of a set, as liblmdb reads them."""

    def read(output: Path) -> list[tuple[bytes, bytes]]:
        found = []
        for file in sorted(output.glob("*.mdb")):
            environment = lmdb.open(str(file), subdir=False, readonly=True, lock=False)
            with environment, environment.begin() as transaction:
                found += list(transaction.cursor())
        return found

    return read


@pytest.fixture
def planned(folder: Path) -> Callable[..., tuple[Plan, Store]]:
    """A plan of a folder as it is now, and a store that is ready for its shards."""

    def make(
        source: Path, shard_size: int = 0, output: str = "out.lmdb", **options: Any
    ) -> tuple[Plan, Store]:
        store = open_store(output)
        store.workspace.mkdir()
        file = store.workspace / "plan"
        meter = Meter(None, "listing")
        made, _ = make_plan(source, None, Options(**options), shard_size, file, meter)
        return made, store

    return make


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> str:
    """Blocks of four files, so that there is work for several processes; the code for another."""
    monkeypatch.setattr(plan, "_BLOCK_FILES", 4)
    return "from ptools.image_lmdb import plan; plan._BLOCK_FILES = 4\n"


@pytest.fixture
def expected(folder: Path, contents: Callable[[Path], Contents]) -> Callable[..., Contents]:
    """What one undisturbed run makes of a source."""

    def pack(source: Path, **options: Any) -> Contents:
        output = folder / f"expected{os.urandom(4).hex()}.lmdb"
        pack_lmdb(source, output, **options)
        return contents(output)

    return pack


@pytest.fixture
def packer(folder: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start `pack_lmdb` in a process of its own; `before` is code to run there first."""
    started = []

    def start(*arguments: Any, before: str = "", **options: Any) -> subprocess.Popen[bytes]:
        code = (
            f"import json, sys\n{before}\nfrom ptools.image_lmdb.engine import pack_lmdb\n"
            "arguments, options = json.loads(sys.argv[1])\n"
            "print('ready', flush=True)\n"
            "print(json.dumps(pack_lmdb(*arguments, **options).to_dict()))\n"
        )
        values = json.dumps([[str(one) for one in arguments], options])
        pipe = subprocess.PIPE
        process = subprocess.Popen([sys.executable, "-c", code, values], stdout=pipe, stderr=pipe)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
