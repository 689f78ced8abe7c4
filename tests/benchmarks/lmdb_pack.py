"""What it takes to pack a folder of images, beside `tar` and beside other packers.

Run `python tests/benchmarks/lmdb_pack.py [ROUNDS [PHOTOS THUMBNAILS]]` (3 rounds if not given) in a
folder on the disk to measure. PHOTOS and THUMBNAILS are folders of class folders; without them
8,000 JPEGs of 90 KB and 50,000 PNGs of 2 KB are made, which needs 3 GB in all. Peers that are not
installed are left out (webdataset, litdata, mosaicml-streaming).

Every way is a whole command, from the start of its interpreter until its output is on the disk
(`sync` of the files it wrote is part of it, as ptools does it itself). The ways take turns, and a
ratio is the median over the rounds of the ratio to the `tar` of the same round. CPU is user and
system time, with all child processes; peak memory is that of the largest process. Cold: nothing of
the source is in the page cache.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from harness import show, show_versions
from lmdb_photos import evict, made

TESTS = Path(__file__).resolve().parents[1]
LISTING = """
import sys
from pathlib import Path
source, output = map(Path, sys.argv[1:])
classes = sorted(folder.name for folder in source.iterdir())
files = [(file, label) for label, name in enumerate(classes)
         for file in sorted((source / name).iterdir())]
"""
# Lyken17/Efficient-PyTorch's folder2lmdb.py, with pickle for the serialiser that pyarrow dropped
# and 2 worker processes for its 16.
FOLDER2LMDB = f"""{LISTING}
import lmdb, pickle
from torch.utils.data import DataLoader, Dataset
class Raw(Dataset):
    def __len__(self): return len(files)
    def __getitem__(self, index): return files[index][0].read_bytes(), files[index][1]
database = lmdb.open(str(output), subdir=False, map_size=2 << 40, meminit=False, map_async=True)
transaction = database.begin(write=True)
for index, batch in enumerate(DataLoader(Raw(), num_workers=2, collate_fn=list)):
    transaction.put(str(index).encode(), pickle.dumps(batch[0]))
    if index % 5000 == 0:
        transaction.commit()
        transaction = database.begin(write=True)
transaction.commit()
with database.begin(write=True) as transaction:
    transaction.put(b"__keys__", pickle.dumps([str(index).encode() for index in range(len(files))]))
    transaction.put(b"__len__", pickle.dumps(len(files)))
database.sync()
database.close()
"""
WEBDATASET = f"""{LISTING}
import webdataset
output.mkdir()
with webdataset.ShardWriter(f"{{output}}/%06d.tar", maxcount=10**6, verbose=0) as writer:
    for index, (file, label) in enumerate(files):
        extension = file.suffix[1:].lower()
        writer.write({{"__key__": f"{{index:08d}}", extension: file.read_bytes(), "cls": label}})
"""
MDS = f"""{LISTING}
sys.path.insert(0, {str(TESTS)!r})
from conftest import import_torchvision
import_torchvision()  # it imports torchvision
from streaming import MDSWriter
with MDSWriter(out=str(output), columns={{"image": "bytes", "label": "int"}}) as writer:
    for file, label in files:
        writer.write({{"image": file.read_bytes(), "label": label}})
"""
LITDATA = f"""{LISTING}
import litdata
def sample(item):
    return item[0].read_bytes(), item[1]
if __name__ == "__main__":
    litdata.optimize(
        sample, files, str(output), chunk_bytes="64MB", num_workers=2, start_method="fork"
    )
"""
TARFILE = """
import sys, tarfile
with tarfile.open(sys.argv[2], "w") as archive:
    archive.add(sys.argv[1])
"""
TAR, OURS = "tar", "ptools pack-lmdb"
WAYS: dict[str, tuple[str, ...]] = {
    TAR: ("tar", "cf", "{output}", "{source}"),
    OURS: (sys.executable, "-m", "ptools", "pack-lmdb", "{source}", "-o", "{output}"),
    "cp -r": ("cp", "-r", "{source}", "{output}"),
    "Python's tarfile": (sys.executable, "-c", TARFILE, "{source}", "{output}"),
    "folder2lmdb.py": (sys.executable, "-c", FOLDER2LMDB, "{source}", "{output}"),
    "webdataset": (sys.executable, "-c", WEBDATASET, "{source}", "{output}"),
    "MosaicML MDSWriter": (sys.executable, "-c", MDS, "{source}", "{output}"),
    "litdata.optimize": (sys.executable, "-c", LITDATA, "{source}", "{output}"),
}
DURABLE = '"$@" && find "$OUTPUT" -type f -exec sync {} + && sync "$(dirname "$OUTPUT")"'
COLUMNS = ["", "CPU s", "times tar", "wall s", "times tar", "peak MB", "output MB"]


class Run(NamedTuple):
    cpu: float  # seconds
    wall: float  # seconds
    peak_bytes: int
    output_bytes: int  # as allocated on the disk


def measured(way: str, source: Path, cold: bool) -> Run | str:
    """Run it once; if it fails, as one does that is not installed, the last line it wrote."""
    output = Path("output").absolute()
    command = [{"{source}": str(source), "{output}": str(output)}.get(w, w) for w in WAYS[way]]
    os.sync()
    if cold:
        evict(source)
    start = time.perf_counter()
    with Path("errors.txt").open("w") as errors:
        process = subprocess.Popen(
            ["sh", "-c", DURABLE, "sh", *command],
            env={**os.environ, "OUTPUT": str(output), "PYTHONPATH": str(TESTS.parent)},
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    files = output.rglob("*") if output.is_dir() else [output]
    size = sum(file.stat().st_blocks * 512 for file in files if file.is_file())
    remove(output)
    if status:
        return Path("errors.txt").read_text().strip().rpartition("\n")[2] or f"status {status}"
    return Run(usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss * 1024, size)


def remove(output: Path) -> None:
    if output.is_dir():
        shutil.rmtree(output)
    output.unlink(missing_ok=True)


def compare(title: str, source: Path, ways: Sequence[str], rounds: int, cold: bool = False) -> None:
    runs: dict[str, list[Run]] = {way: [] for way in ways}
    failed: dict[str, str] = {}
    measured(TAR, source, cold=False)  # a round before the first: the source into the page cache
    for _ in range(rounds):
        for way, done in runs.items():
            if way in failed:
                continue
            if isinstance(run := measured(way, source, cold), Run):
                done.append(run)
            else:
                failed[way] = run
    rows = [row(way, done, runs[TAR]) for way, done in runs.items() if way not in failed]
    show(title, COLUMNS, rows)
    for way, reason in failed.items():
        print(f"{way} failed: {reason}")


def row(way: str, runs: list[Run], tars: list[Run]) -> list[str]:
    pairs = list(zip(runs, tars, strict=True))

    def median(field: str) -> list[str]:
        figures = [(getattr(run, field), getattr(tar, field)) for run, tar in pairs]
        ratio = statistics.median(ours / tars for ours, tars in figures)
        return [f"{statistics.median(ours for ours, _ in figures):.2f}", f"{ratio:.2f}"]

    peak = max(run.peak_bytes for run, _ in pairs)
    output = pairs[0][0].output_bytes
    return [way, *median("cpu"), *median("wall"), f"{peak / 1e6:.0f}", f"{output / 1e6:.0f}"]


def main(rounds: str = "3", photos: str | None = None, thumbnails: str | None = None) -> None:
    show_versions("ptools", "lmdb", "webdataset", "mosaicml-streaming", "litdata")
    given = [Path(folder).absolute() for folder in (photos, thumbnails) if folder]
    with tempfile.TemporaryDirectory(dir=".") as folder:
        os.chdir(folder)
        jpegs, pngs = given or [
            made(kind, Path(kind).absolute()) for kind in ("photos", "thumbnails")
        ]
        compare("JPEGs, source in the page cache", jpegs, list(WAYS), int(rounds))
        compare("JPEGs, cold source", jpegs, [TAR, OURS, "cp -r"], int(rounds), cold=True)
        compare("32 x 32 PNGs, source in the page cache", pngs, list(WAYS), int(rounds))
        compare("32 x 32 PNGs, cold source", pngs, [TAR, OURS], int(rounds), cold=True)
        os.chdir("..")


if __name__ == "__main__":
    main(*sys.argv[1:])
