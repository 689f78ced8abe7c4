import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from ptools.errors import UsageError
from ptools.launcher import devices
from ptools.launcher.devices import Devices, choose, gpus_here

UUIDS = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6,GPU-1b2c"


def have(monkeypatch: pytest.MonkeyPatch, count: int, visible: str | None = None) -> None:
    monkeypatch.setattr(devices, "_count", lambda: count)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


@pytest.mark.parametrize(
    ("count", "visible", "here"),
    [
        (0, None, []),
        (2, None, ["0", "1"]),
        (4, "3,1", ["3", "1"]),
        (4, " 3 , 1 ", ["3", "1"]),
        (4, "", []),
        (4, "-1", []),
        (4, "0,-1,2", ["0"]),  # CUDA stops at the first that it does not know
        (4, "0,9,1", ["0"]),
        (4, UUIDS, UUIDS.split(",")),
        (4, "MIG-5c89", ["MIG-5c89"]),
        (0, "0,1", []),
    ],
)
def test_the_gpus_that_cuda_would_show(
    monkeypatch: pytest.MonkeyPatch, count: int, visible: str | None, here: list[str]
) -> None:
    have(monkeypatch, count, visible)
    assert gpus_here() == here


def test_they_are_those_that_torch_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert len(gpus_here()) == torch.cuda.device_count()


def test_the_driver_is_asked_when_nvml_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    for slot in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / slot).mkdir()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(ctypes, "CDLL", missing)
    monkeypatch.setattr(devices, "_DRIVER", tmp_path)
    assert gpus_here() == ["0", "1"]


@pytest.mark.parametrize(
    ("text", "procs", "chosen"),
    [
        (None, None, Devices(("0", "1", "2", "3"), 4)),
        ("all", None, Devices(("0", "1", "2", "3"), 4)),
        ("2", None, Devices(("0", "1"), 2)),
        ("0,2", None, Devices(("0", "2"), 2)),
        ("3,", None, Devices(("3",), 1)),
        ("2", 4, Devices(("0", "1"), 4)),
        (None, 2, Devices(("0", "1"), 2)),
        ("cpu", None, Devices((), 1)),
        ("cpu", 3, Devices((), 3)),
    ],
)
def test_gpus_are_chosen(
    monkeypatch: pytest.MonkeyPatch, text: str | None, procs: int | None, chosen: Devices
) -> None:
    have(monkeypatch, 4)
    assert choose(text, procs) == chosen


def test_the_positions_are_among_what_is_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, 8, "6,4")
    assert choose("1", None).gpus == ("6",)
    assert choose("1,0", None).gpus == ("4", "6")
    have(monkeypatch, 8, UUIDS)
    assert choose("1,", None).gpus == ("GPU-1b2c",)
    assert choose("GPU-1b2c", None).gpus == ("GPU-1b2c",)


def test_without_gpus_the_cpu_is_taken_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, 0)
    chosen = choose(None, None)
    assert (chosen.gpus, chosen.procs) == ((), 1)
    assert chosen.note is not None and "CPU" in chosen.note
    assert choose(None, 2).procs == 2
    assert choose("cpu", None).note is None


@pytest.mark.parametrize(
    ("text", "procs", "number"), [("4", None, 4), ("0,1", None, 2), ("all", 3, 3)]
)
def test_gpus_asked_for_where_there_are_none_are_refused(
    monkeypatch: pytest.MonkeyPatch, text: str, procs: int | None, number: int
) -> None:
    have(monkeypatch, 0)
    with pytest.raises(UsageError, match="there are no GPUs here") as caught:
        choose(text, procs)
    assert caught.value.hint == f"--gpus cpu -n {number}"


@pytest.mark.parametrize(
    ("text", "procs", "message"),
    [
        ("5", None, r"5 GPUs asked for, there are 4 here \(0, 1, 2, 3\)"),
        ("0;2", None, "cannot read --gpus 0;2"),
        ("0,0", None, "names GPU 0 twice"),
        ("2,a", None, "'a' is no GPU"),
        ("0,,1", None, "'' is no GPU"),
        ("", None, "cannot read"),
        ("-1", None, "'-1' is no GPU"),
        ("²", None, "cannot read"),
        ("0", None, "no GPU at all"),
        ("0,7", None, "there is no GPU 7: there are 4 here"),
        ("GPU-abc", None, "there is no GPU GPU-abc"),
        ("4", 6, "6 processes cannot share 4 GPUs evenly"),
        ("4", 2, "2 processes cannot share 4 GPUs evenly"),
        (None, 5, "5 processes cannot share 4 GPUs evenly"),
        ("cpu", 0, "0 processes"),
        (None, -1, "-1 processes"),
    ],
)
def test_what_cannot_be_is_refused_with_what_there_is(
    monkeypatch: pytest.MonkeyPatch, text: str | None, procs: int | None, message: str
) -> None:
    have(monkeypatch, 4)
    with pytest.raises(UsageError, match=message) as caught:
        choose(text, procs)
    assert caught.value.hint


def test_torch_is_imported_neither_for_devices_nor_for_the_plan_of_several_machines() -> None:
    code = (
        "import sys, ptools.slurm; from ptools.launcher import devices, multinode, route; "
        "devices.choose('cpu', 2); multinode.meet('1', None); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
