"""Thread pools that libraries start behind a worker's back, so that all workers fight for cores."""

import ctypes
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

_MAPS = Path("/proc/self/maps")


@dataclass(frozen=True)
class _Pool:
    """A library with threads: how its files are named, and how it is told how many to use."""

    files: tuple[str, ...]
    variable: str
    functions: tuple[str, ...]


_POOLS = (
    _Pool(("libgomp", "libiomp", "libomp"), "OMP_NUM_THREADS", ("omp_set_num_threads",)),
    _Pool(
        ("openblas",),
        "OPENBLAS_NUM_THREADS",
        (
            "openblas_set_num_threads",
            "openblas_set_num_threads64_",
            "scipy_openblas_set_num_threads",
            "scipy_openblas_set_num_threads64_",
        ),
    ),
    _Pool(("libmkl_rt",), "MKL_NUM_THREADS", ("MKL_Set_Num_Threads",)),
)


def limit_threads() -> None:
    """Let each library that is loaded use one thread in this process, as a worker should.

    A DataLoader limits torch's threads in its workers, and no others.
    """
    torch.set_num_threads(1)
    for pool, path in _loaded():
        try:
            library = ctypes.CDLL(path, mode=os.RTLD_NOLOAD)
        except OSError:  # loaded, but not to be found under that name any more
            continue
        for function in pool.functions:
            if hasattr(library, function):
                library[function](ctypes.c_int(1))
    if "cv2" in sys.modules:
        # 1 would join the threads of its pool, which a forked process does not have: for ever
        sys.modules["cv2"].setNumThreads(0)


def advice() -> str:
    """What to paste to do the same, for the libraries that are loaded; empty if there are none."""
    variables = dict.fromkeys(
        f"{pool.variable}=1" for pool, path in _loaded() if not _is_torchs(path)
    )
    words = [f"{' '.join(variables)} in the environment"] if variables else []
    if "cv2" in sys.modules:
        words.append("cv2.setNumThreads(0) in worker_init_fn")
    return " and ".join(words)


def _loaded() -> list[tuple[_Pool, str]]:
    """The libraries with threads in this process; none where the kernel does not tell."""
    if not _MAPS.exists():
        return []
    with _MAPS.open() as maps:
        paths = sorted({line.split(maxsplit=5)[5].strip() for line in maps if ".so" in line})
    return [
        (pool, path)
        for pool in _POOLS
        for path in paths
        if any(name in path.rpartition("/")[2] for name in pool.files)
    ]


def _is_torchs(path: str) -> bool:
    """Whether torch brought the library: a DataLoader limits that one already."""
    return Path(path).parent == Path(torch.__file__).parent / "lib"
