"""The largest batch that there is memory for, and caches given back."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import nn

from ptools.errors import PtoolsError, UsageError
from ptools.train.memory import batchsize
from ptools.train.memory.batchsize import empty_cache, find_batch_size

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 400 bytes."),
    RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError(),
]


@pytest.fixture
def no_cache(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Trials that collect no garbage, which takes long in a large process; one for each trial."""
    emptied: list[int] = []
    monkeypatch.setattr(batchsize, "empty_cache", lambda: emptied.append(1))
    return emptied


def device_for(
    samples: int, sizes: list[int] | None = None, error: Exception = ERRORS[0]
) -> Callable[[int], None]:
    def step(size: int) -> None:
        if sizes is not None:
            sizes.append(size)
        if size > samples:
            raise error

    return step


@pytest.mark.parametrize("error", ERRORS, ids=["cuda", "cpu", "mps", "cublas", "python"])
@pytest.mark.parametrize("samples", [1, 2, 7, 64, 100, 999])
def test_it_finds_the_largest(no_cache: list[int], samples: int, error: Exception) -> None:
    assert find_batch_size(device_for(samples, error=error), margin=0) == samples


@pytest.mark.parametrize("start", [1, 5, 100, 101, 900])
def test_wherever_it_starts(no_cache: list[int], start: int) -> None:
    assert find_batch_size(device_for(100), start=start, margin=0) == 100


def test_it_stops_at_the_limit_and_takes_nothing_off_that(no_cache: list[int]) -> None:
    sizes: list[int] = []
    assert find_batch_size(device_for(10**9, sizes), limit=100) == 100
    assert max(sizes) == 100
    assert find_batch_size(device_for(99), limit=100, margin=0) == 99


def test_a_margin_is_taken_off(no_cache: list[int]) -> None:
    assert find_batch_size(device_for(100)) == 90
    assert find_batch_size(device_for(100), margin=0.25) == 75
    assert find_batch_size(device_for(1)) == 1


def test_it_takes_few_trials_each_of_two_steps(no_cache: list[int]) -> None:
    sizes: list[int] = []
    find_batch_size(device_for(1000, sizes))
    assert len(set(sizes)) <= 2 * 11
    assert sizes[:6] == [1, 1, 2, 2, 4, 4]


def test_a_size_whose_second_step_fails_does_not_fit(no_cache: list[int]) -> None:
    """The optimizer makes its state in the first step."""
    state: list[int] = []

    def step(size: int) -> None:
        if size + 10 * len(state) > 50:
            raise MemoryError
        state.append(1) if not state else None

    assert find_batch_size(step, start=45, margin=0) == 40


def test_caches_are_emptied_after_each_trial(no_cache: list[int]) -> None:
    find_batch_size(device_for(4))
    assert len(no_cache) == len({1, 2, 4, 8, 6, 5})


def test_a_failed_trial_leaves_nothing_behind() -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    left: list[int] = []

    def step(size: int) -> None:
        left.append(sum(one() is not None for one in alive))
        tensor = torch.zeros(size)
        alive.append(weakref.ref(tensor))
        cycle = [tensor]
        cycle.append(cycle)  # type: ignore[arg-type]
        if size > 5 and len(left) % 2 == 0:
            raise MemoryError

    gc.disable()
    try:
        find_batch_size(step)
    finally:
        gc.enable()
    assert left[::2] == [0] * len(left[::2])  # at the first step of each trial


def test_other_errors_pass_through() -> None:
    def step(size: int) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        find_batch_size(step)


def test_no_room_at_all_and_nonsense_are_told(no_cache: list[int]) -> None:
    with pytest.raises(PtoolsError, match="no memory for a batch of 1"):
        find_batch_size(device_for(0), start=16)
    for options in ({"start": 0}, {"start": 8, "limit": 4}, {"margin": 1.0}):
        with pytest.raises(UsageError, match="limit="):
            find_batch_size(device_for(1), **options)  # type: ignore[arg-type]


LIMITED = """
import resource
import torch
from ptools.train.memory.batchsize import find_batch_size

torch.set_num_threads(1)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 100 * 2**20,) * 2)
print(find_batch_size(lambda size: torch.empty(size, 2**20, dtype=torch.uint8), margin=0))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_the_cpus_allocator_that_refuses_memory_is_understood() -> None:
    call = [sys.executable, "-c", LIMITED]
    done = subprocess.run(call, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert 30 <= int(done.stdout) <= 100


def test_on_a_cpu_there_is_only_garbage_to_collect() -> None:
    cycle: list[object] = [torch.zeros(10)]
    cycle.append(cycle)
    tensor = weakref.ref(cycle[0])  # type: ignore[type-var]
    del cycle
    freed = empty_cache()
    assert tensor() is None
    assert freed.objects >= 1
    if not torch.cuda.is_initialized() and not torch.backends.mps.is_available():
        assert freed.bytes == {}
        assert str(freed).endswith("collected")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_what_the_allocator_of_a_gpu_kept_comes_free() -> None:
    tensor = torch.empty(64 * 2**20, dtype=torch.uint8, device="cuda")
    before = torch.cuda.memory_reserved()
    del tensor
    freed = empty_cache()
    device = f"cuda:{torch.cuda.current_device()}"
    assert freed.bytes[device] == before - torch.cuda.memory_reserved() >= 64 * 2**20


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_with_little_memory_left_has_a_largest_batch() -> None:
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(256 * 2**20 / total)
    net = nn.Linear(2**18, 1).cuda()
    try:
        found = find_batch_size(lambda size: net(torch.randn(size, 2**18, device="cuda")))
        assert 64 <= found < 256
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        empty_cache()
