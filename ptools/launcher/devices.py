"""The GPUs of this machine, found without torch, and those that a run is to use."""

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ptools.errors import UsageError

_DRIVER = Path("/proc/driver/nvidia/gpus")


class Devices(NamedTuple):
    """What the processes of this machine run on."""

    gpus: tuple[str, ...]  # as in CUDA_VISIBLE_DEVICES; () for the CPU
    procs: int
    note: str | None = None  # for the user to know


def gpus_here() -> list[str]:
    """The GPUs that a program started now would see, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = _count() if visible is None or visible.strip() else 0
    if visible is None:
        return [str(index) for index in range(count)]
    return _visible(visible, count)


def choose(text: str | None, procs: int | None) -> Devices:
    """The GPUs that `text` asks for (a number, a list, "all", "cpu", or None), and the processes.

    Raises:
        UsageError: there are not these GPUs, or the processes cannot share them evenly.
    """
    is_cpu = text is not None and text.strip().lower() == "cpu"
    here = [] if is_cpu else gpus_here()  # to ask NVML takes its time
    if procs is not None and procs < 1:
        raise UsageError(f"{procs} processes cannot run", hint="-n 1 or more")
    note = None
    if text is None:
        gpus = tuple(here)
        note = None if here else "no GPU here: running on the CPU"
    else:
        gpus = _asked(text.strip(), here, procs)
    if not gpus:
        return Devices((), procs or 1, note)
    if procs is not None and text is None and procs < len(gpus):
        gpus = gpus[:procs]
    _check_even(len(gpus), procs)
    return Devices(gpus, procs or len(gpus), note)


def _asked(text: str, here: list[str], procs: int | None) -> tuple[str, ...]:
    if text.lower() == "cpu":
        return ()
    if text.isascii() and text.isdecimal():
        return _first(int(text), here, procs)
    if text.lower() == "all":
        if not here:
            raise _no_gpus(procs or 1)
        return tuple(here)
    return _listed(text, here, procs)


def _first(count: int, here: list[str], procs: int | None) -> tuple[str, ...]:
    if count == 0:
        raise UsageError("--gpus 0 is no GPU at all", hint="--gpus cpu, or a list: --gpus 0,")
    if not here:
        raise _no_gpus(procs or count)
    if count > len(here):
        raise UsageError(f"{count} GPUs asked for, {_there_are(here)}", hint="--gpus all")
    return tuple(here[:count])


def _listed(text: str, here: list[str], procs: int | None) -> tuple[str, ...]:
    """A list of positions among the GPUs that are visible here, or of their UUIDs."""
    words = [word.strip() for word in text.removesuffix(",").split(",")]
    known = {str(index): gpu for index, gpu in enumerate(here)} | {
        gpu: gpu for gpu in here if "-" in gpu
    }
    for word in words:
        is_number = word.isascii() and word.isdecimal()
        if not is_number and not word.startswith(("GPU-", "MIG-")):
            raise UsageError(
                f"cannot read --gpus {text}: {word!r} is no GPU",
                hint="a number (4), a list (0,2), all, or cpu",
            )
    if not here:
        raise _no_gpus(procs or len(words))
    missing = [word for word in words if word not in known]
    if missing:
        raise UsageError(f"there is no GPU {missing[0]}: {_there_are(here)}", hint="--gpus all")
    gpus = tuple(known[word] for word in words)
    twice = [word for index, word in enumerate(words) if gpus[index] in gpus[:index]]
    if twice:
        raise UsageError(
            f"--gpus {text} names GPU {twice[0]} twice", hint="-n gives the number of processes"
        )
    return gpus


def _check_even(gpus: int, procs: int | None) -> None:
    if procs is not None and procs % gpus:
        raise UsageError(
            f"{procs} processes cannot share {gpus} GPUs evenly",
            hint=f"-n {gpus}" if procs > gpus else f"--gpus {procs}",
        )


def _no_gpus(procs: int) -> UsageError:
    return UsageError("there are no GPUs here", hint=f"--gpus cpu -n {procs}")


def _there_are(here: list[str]) -> str:
    if len(here) == 1:
        return f"there is 1 here ({here[0]})"
    return f"there are {len(here)} here ({', '.join(here)})"


def _visible(text: str, count: int) -> list[str]:
    """What CUDA takes of CUDA_VISIBLE_DEVICES: all up to the first that it does not know."""
    found: list[str] = []
    for word in (part.strip() for part in text.split(",")):
        is_there = word.isascii() and word.isdecimal() and int(word) < count
        if not is_there and not (count and word.startswith(("GPU-", "MIG-"))):
            break
        found.append(word)
    return found


def _count() -> int:
    """How many the driver knows: NVML if it is there, else what the kernel module lists."""
    import ctypes

    with suppress(OSError, AttributeError):
        library = ctypes.CDLL("libnvidia-ml.so.1")
        number = ctypes.c_uint()
        if library.nvmlInit_v2() == 0:
            try:
                if library.nvmlDeviceGetCount_v2(ctypes.byref(number)) == 0:
                    return number.value
            finally:
                library.nvmlShutdown()
    return len(list(_DRIVER.iterdir())) if _DRIVER.is_dir() else 0
