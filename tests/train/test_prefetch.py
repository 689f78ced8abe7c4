"""Batches fetched ahead: the same as without, and nothing left behind."""

import gc
import subprocess
import sys
import threading
import time
import traceback
from collections import UserDict, namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, Dataset

from ptools.errors import UsageError
from ptools.train.prefetch import BackgroundLoader, CUDAPrefetcher

Pair = namedtuple("Pair", "x y")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Noisy(Dataset[torch.Tensor]):
    """Draws from torch's global generator, as random augmentations do."""

    drawn = 0

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        self.drawn += 1
        return torch.rand(3)


class Silent(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((3,), float(index))


class Tokens(UserDict[str, Any]):
    """Like BatchEncoding of transformers: no dict, but with a `to`."""

    def to(self, device: torch.device, non_blocking: bool = False) -> "Tokens":
        return Tokens({key: value.to(device) for key, value in self.items()})


class Mine(dict[str, Any]):
    pass


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    gc.collect()
    assert wait_until(lambda: threading.active_count() <= before)


def wait_until(true: Callable[[], bool], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.005)
    return true()


def threads() -> int:
    return sum(thread.name == "BackgroundLoader" for thread in threading.enumerate())


def trained(loader: Any, epochs: int = 2) -> list[tuple[list[float], float]]:
    """Batches, and what a training with dropout draws in between."""
    torch.manual_seed(0)
    return [
        (batch.flatten().tolist(), float(nn.functional.dropout(torch.ones(9)).sum()))
        for _ in range(epochs)
        for batch in loader
    ]


def test_batches_come_in_order_in_every_epoch() -> None:
    loader = BackgroundLoader(range(50), depth=3)
    assert len(loader) == 50
    assert [list(loader) for _ in range(3)] == [list(range(50))] * 3


def test_a_loader_without_length_has_none_in_the_background_either() -> None:
    loader = BackgroundLoader(iter(range(3)))
    with pytest.raises(TypeError):
        len(loader)
    assert list(loader) == [0, 1, 2]
    assert list(BackgroundLoader(())) == []


def test_a_depth_below_one_is_refused() -> None:
    with pytest.raises(UsageError, match="depth=0"):
        BackgroundLoader([], depth=0)


def test_what_the_loader_has_is_seen_through() -> None:
    inner = DataLoader(Silent(), 2, shuffle=True)
    loader = BackgroundLoader(inner)
    assert loader.dataset is inner.dataset and loader.sampler is inner.sampler
    with pytest.raises(AttributeError):
        _ = loader.set_epochs


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_as_many_batches_as_asked_for_are_fetched_ahead(depth: int) -> None:
    fetched: list[int] = []
    for _ in BackgroundLoader((fetched.append(one) for one in range(20)), depth):
        assert wait_until(lambda: len(fetched) == depth + 1)
        time.sleep(0.02)
        assert len(fetched) == depth + 1
        break


def test_fetching_goes_on_while_the_consumer_is_busy() -> None:
    def slow() -> Iterator[int]:
        for one in range(5):
            time.sleep(0.04)
            yield one

    start = time.perf_counter()
    for _ in BackgroundLoader(slow()):
        time.sleep(0.04)
    assert time.perf_counter() - start < 0.35  # 0.4 one after the other, 0.24 side by side


def test_an_error_comes_at_its_batch_with_the_line_it_was_raised_at() -> None:
    def broken() -> Iterator[int]:
        yield from range(3)
        raise ValueError("no such file")  # the line

    seen = []
    with pytest.raises(ValueError, match="no such file") as caught:
        for batch in BackgroundLoader(broken()):
            time.sleep(0.01)  # the error waits already
            seen.append(batch)
    assert seen == [0, 1, 2]
    text = "".join(traceback.format_exception(caught.value))
    assert 'raise ValueError("no such file")  # the line' in text


def test_an_error_at_the_start_of_the_loader_comes_at_once() -> None:
    class Closed:
        def __iter__(self) -> Iterator[int]:
            raise OSError("closed")

    with pytest.raises(OSError, match="closed"):
        next(iter(BackgroundLoader(Closed())))


def test_the_epoch_after_an_error_is_whole() -> None:
    loader = BackgroundLoader([1, 2, 3])
    with pytest.raises(RuntimeError):
        for _ in loader:
            raise RuntimeError
    assert list(loader) == [1, 2, 3]


def leave_by_break(loader: BackgroundLoader[Any]) -> None:
    for _ in loader:
        break


def leave_by_error(loader: BackgroundLoader[Any]) -> None:
    with pytest.raises(ZeroDivisionError):
        for _ in loader:
            raise ZeroDivisionError


def leave_by_close(loader: BackgroundLoader[Any]) -> None:
    batches: Any = iter(loader)
    next(batches)
    batches.close()


def leave_as_garbage(loader: BackgroundLoader[Any]) -> None:
    holder: list[Any] = [iter(loader)]
    holder.append(holder)
    next(holder[0])
    del holder
    gc.collect()


@pytest.mark.parametrize(
    "leave", [leave_by_break, leave_by_error, leave_by_close, leave_as_garbage]
)
def test_no_thread_and_no_batch_is_left_when_the_loop_is(leave: Callable[..., None]) -> None:
    alive: list[Any] = []

    class Batch:
        def __init__(self) -> None:
            alive.append(None)

        def __del__(self) -> None:
            alive.pop()

    loader = BackgroundLoader(Batch() for _ in range(100))
    leave(loader)
    assert threads() == 0  # at once
    assert not alive


def test_a_batch_is_let_go_while_the_consumer_works() -> None:
    class Batch:
        gone = 0

        def __del__(self) -> None:
            Batch.gone += 1

    batches = iter(BackgroundLoader((Batch() for _ in range(1)), depth=1))
    batch = next(batches)
    del batch
    assert wait_until(lambda: Batch.gone == 1)


def test_two_iterations_at_once_are_independent() -> None:
    loader = BackgroundLoader(range(30))
    assert list(zip(loader, loader, strict=True)) == [(one, one) for one in range(30)]


def test_leaving_does_not_wait_for_a_loader_that_is_stuck() -> None:
    go_on = threading.Event()

    def stuck() -> Iterator[int]:
        yield 1
        go_on.wait(20)

    start = time.monotonic()
    for _ in BackgroundLoader(stuck()):
        break
    assert time.monotonic() - start < 3
    assert threads() == 1
    go_on.set()


def test_the_next_epoch_waits_until_the_loader_is_free() -> None:
    class Alone:
        inside = 0

        def __iter__(self) -> Iterator[int]:
            for one in range(3):
                assert self.inside == 0
                self.inside += 1
                time.sleep(0.03)
                self.inside -= 1
                yield one

    loader = BackgroundLoader(Alone())
    batches: Any = iter(loader)
    next(batches)
    loader._fetchers.copy().pop().stop(0)
    assert list(loader) == [0, 1, 2]


@pytest.mark.parametrize("workers", [0, 1])
def test_shuffling_repeats_bit_for_bit_beside_a_training_that_draws(workers: int) -> None:
    inner = DataLoader(Silent(), 2, shuffle=True, num_workers=workers)
    assert trained(BackgroundLoader(inner)) == trained(inner)


def test_samples_drawn_in_workers_repeat_bit_for_bit() -> None:
    inner = DataLoader(Noisy(), 2, shuffle=True, num_workers=1)
    assert trained(BackgroundLoader(inner)) == trained(inner)


def test_samples_drawn_in_the_thread_come_in_between_those_of_the_training() -> None:
    noisy = Noisy()
    torch.manual_seed(0)
    for _ in BackgroundLoader(DataLoader(noisy, 2), depth=2):
        assert wait_until(lambda: noisy.drawn == 6)  # this batch, and two ahead
        between = torch.rand(3)
        break
    torch.manual_seed(0)
    torch.empty((), dtype=torch.int64).random_()  # the seed that DataLoader draws for workers
    draws = [torch.rand(3) for _ in range(7)]
    assert torch.equal(between, draws[6])
    assert not torch.equal(between, draws[2])  # where it is without the thread


def test_persistent_workers_survive_an_epoch_that_was_left() -> None:
    inner = DataLoader(Silent(), 2, num_workers=1, persistent_workers=True)
    loader = BackgroundLoader(inner)
    for _ in loader:
        break
    assert len(list(loader)) == 4


def test_the_thread_has_the_modes_of_the_consumer() -> None:
    def modes() -> Iterator[tuple[bool, ...]]:
        while True:
            yield (
                torch.is_grad_enabled(),
                torch.is_inference_mode_enabled(),
                torch.is_autocast_enabled("cpu"),
                torch.ones(1).is_meta,
            )

    loader = BackgroundLoader(modes())
    assert next(iter(loader)) == (True, False, False, False)
    with torch.no_grad(), torch.autocast("cpu"):
        assert next(iter(loader)) == (False, False, True, False)
    with torch.inference_mode(), torch.device("meta"):
        assert next(iter(loader)) == (False, True, False, True)
    assert torch.is_grad_enabled()


def run(program: str, tmp_path: Path) -> tuple[str, int]:
    file = tmp_path / "program.py"
    file.write_text(f"from ptools.train.prefetch import BackgroundLoader\n{program}")
    done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr, done.returncode


def test_a_loader_that_is_stuck_keeps_neither_ctrl_c_nor_python_waiting(tmp_path: Path) -> None:
    program = """
import os, signal, threading, time
def stuck():
    yield 1
    time.sleep(1000)
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    for batch in BackgroundLoader(stuck()):
        start = time.monotonic()
except KeyboardInterrupt:
    print("left in", time.monotonic() - start < 0.8)
other = iter(BackgroundLoader(stuck()))
print("and", next(other))
"""
    assert run(program, tmp_path) == ("left in True\nand 1\n", 0)


def test_the_same_batches_come_on_a_cpu() -> None:
    loader = [[torch.arange(3) + at, {"at": at}] for at in range(4)]
    prefetched = list(CUDAPrefetcher(loader, "cpu"))
    assert len(CUDAPrefetcher(loader, "cpu")) == 4
    assert [at["at"] for _, at in prefetched] == [0, 1, 2, 3]
    assert all(torch.equal(x, y) for (x, _), (y, _) in zip(prefetched, loader, strict=True))
    assert threads() == 0


def moved(batch: Any) -> Any:
    """Moved to where no values are, so that what was not moved is seen on a CPU too."""
    return next(iter(CUDAPrefetcher([batch], "meta")))


def test_tensors_are_moved_within_whatever_holds_them() -> None:
    one = torch.ones(2)
    batch = moved(
        {
            "pair": Pair(one, [one, (one, "text", None, 3)]),
            "tokens": Tokens(ids=one),
            "mine": Mine(x=one, name="a"),
            "packed": pack_sequence([one]),
        }
    )
    assert type(batch["pair"]) is Pair and batch["pair"].x.is_meta
    assert batch["pair"].y[0].is_meta and batch["pair"].y[1][1:] == ("text", None, 3)
    assert type(batch["tokens"]) is Tokens and batch["tokens"]["ids"].is_meta
    assert type(batch["mine"]) is Mine and batch["mine"]["x"].is_meta
    assert batch["mine"]["name"] == "a" and batch["packed"].data.is_meta
    assert not one.is_meta


def test_a_batch_encoding_is_moved() -> None:
    transformers = pytest.importorskip("transformers.tokenization_utils_base")
    encoding = transformers.BatchEncoding({"input_ids": torch.ones(1, 3)})
    assert type(moved(encoding)) is type(encoding) and moved(encoding)["input_ids"].is_meta


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("pin", [False, True], ids=["pageable", "pinned"])
def test_values_are_right_where_memory_is_used_again_at_once(pin: bool) -> None:
    host = torch.empty(1 << 22, pin_memory=pin)

    def refilled() -> Iterator[torch.Tensor]:
        for at in range(60):
            yield host.fill_(at)

    busy = torch.randn(2048, 2048, device="cuda")
    found = []
    for batch in CUDAPrefetcher(refilled()):
        for _ in range(4):
            busy = (busy @ busy).clamp(-1, 1)
        found.append((batch.min(), batch.max()))
        del batch  # its memory may be given away before the GPU has come to it
    assert [(int(low), int(high)) for low, high in found] == [(at, at) for at in range(60)]


@pytest.mark.gpu
@needs_gpu
def test_copying_and_computing_overlap() -> None:
    host = [torch.ones(1 << 25).pin_memory() for _ in range(2)] * 8
    weights = torch.randn(4096, 4096, device="cuda")

    def compute() -> None:
        for _ in range(4):
            weights.mm(weights)

    def milliseconds(loop: Callable[[], object]) -> float:
        loop()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        loop()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)

    copying = milliseconds(lambda: [one.to("cuda", non_blocking=True) for one in host])
    computing = milliseconds(lambda: [compute() for _ in host])
    together = milliseconds(lambda: [compute() for _ in CUDAPrefetcher(host)])
    assert together < copying + computing - min(copying, computing) / 2
