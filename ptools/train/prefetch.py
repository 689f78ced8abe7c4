"""Batches made ready ahead of the training: by a thread, and by the GPU's copying engine."""

from __future__ import annotations

import atexit
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import torch

from ptools.errors import UsageError
from ptools.train.devices import moved, tensors, to_device
from ptools.train.loader import Loader

T = TypeVar("T")

_PATIENCE = 1.0  # seconds for a batch that is being fetched when nobody wants it any more


class _Around(Generic[T]):
    """What is seen of a loader through what is put around it."""

    def __init__(self, loader: Iterable[T]) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[T]:
        return self.counted(iter)

    def counted(self, ahead: Callable[[Iterable[T]], Iterator[T]]) -> Iterator[T]:
        """As of a session's loader, which counts what comes out at the very end."""
        if isinstance(self._loader, Loader | _Around):
            yield from self._loader.counted(lambda batches: ahead(self._ahead(batches)))
        else:
            yield from ahead(self._ahead(self._loader))

    def _ahead(self, batches: Iterable[T]) -> Iterator[T]:
        raise NotImplementedError

    def __len__(self) -> int:
        """As many batches as the loader has; TypeError if it does not know."""
        return len(self._loader)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        """The loader's own: dataset, sampler, set_epoch."""
        if name.startswith("_"):  # also _loader itself, while a copy is being made
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self._loader, name)


class BackgroundLoader(_Around[T]):
    """Iterate over it as over the loader: a thread fetches `depth` batches ahead.

    It helps where fetching waits (for a disk, a network) or computes without the GIL (decoding,
    NumPy, torch) and the training leaves room for it: it runs on a GPU, or a core is free. A loader
    that computes in Python is not helped: that takes num_workers.

    The thread fetches under the grad mode, autocast and devices that the consumer has when it takes
    the first batch. What the dataset itself draws from torch's global generator comes in between
    what the training draws, so a run repeats only with num_workers > 0 or with generators of the
    dataset's own; shuffling alone does repeat. Around a session's loader, epochs, steps and
    checkpoints count the batches that the training got, not those ahead.

    Args:
        loader: a DataLoader, or anything to iterate over.
        depth: batches kept ready, one of which may still be in the making.

    Raises:
        UsageError: depth is below 1.

    Example:
        >>> for x, y in BackgroundLoader(DataLoader(dataset, 64)):
        ...     train(x, y)
    """

    def __init__(self, loader: Iterable[T], depth: int = 2) -> None:
        if depth < 1:
            raise UsageError(f"depth={depth} batches ahead", hint="1 or more")
        super().__init__(loader)
        self._depth = depth
        self._fetchers: weakref.WeakSet[_Fetcher[T]] = weakref.WeakSet()

    def _ahead(self, batches: Iterable[T]) -> Iterator[T]:
        for fetcher in list(self._fetchers):
            if fetcher.is_stopped:
                fetcher.stop(None)  # it may be within a batch of this same loader
        # Begun here and not in the thread: processes are best forked where nothing else runs.
        fetcher = _Fetcher(iter(batches), self._depth)
        self._fetchers.add(fetcher)
        try:
            yield from fetcher.batches()
        except GeneratorExit:
            fetcher.stop(_PATIENCE)
            raise
        finally:
            fetcher.stop(0)


class _Fetcher(Generic[T]):
    """A thread that goes once through a loader; it lives until it is through or stopped."""

    def __init__(self, batches: Iterator[T], depth: int) -> None:
        self._free = threading.Semaphore(depth)
        self._ready: SimpleQueue[tuple[list[T], BaseException | None]] = SimpleQueue()
        self.is_stopped = False
        self._thread = threading.Thread(
            target=self._fetch, args=([batches], _settings()), name="BackgroundLoader", daemon=True
        )
        self._thread.start()
        _running.add(self)

    def batches(self) -> Iterator[T]:
        """The batches, and then the error that ended them, if one did."""
        while True:
            batch, error = self._ready.get()
            if error is not None:
                try:
                    raise error
                finally:
                    del error  # its traceback holds this frame
            if not batch:
                return
            self._free.release()
            yield batch.pop()  # and keep no reference while the consumer computes

    def stop(self, patience: float | None) -> None:
        """Fetch no more, and wait so long for the batch that is being fetched; None: for ever."""
        self.is_stopped = True
        self._free.release()
        if self._thread is not threading.current_thread():  # garbage may be collected there
            self._thread.join(patience)

    def _fetch(self, begun: list[Iterator[T]], settings: list[_Setting]) -> None:
        batches = begun.pop()  # the only reference, so that a DataLoader's workers end with it
        try:
            with ExitStack() as within:
                for setting in settings:
                    within.enter_context(setting())
                while self._free.acquire() and not self.is_stopped:
                    self._ready.put(([next(batches)], None))
        except StopIteration:
            self._ready.put(([], None))
        except BaseException as error:
            self._ready.put(([], error))


_running: weakref.WeakSet[_Fetcher[Any]] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    # A thread that comes back from C++ while the interpreter goes takes the process down.
    fetchers = list(_running)
    for patience in (0, _PATIENCE / max(1, len(fetchers))):
        for fetcher in fetchers:
            fetcher.stop(patience)


_Setting = Callable[[], AbstractContextManager[Any]]


def _settings() -> list[_Setting]:
    """The modes of this thread, to be entered in another."""
    found: list[_Setting] = [
        partial(torch.inference_mode, torch.is_inference_mode_enabled()),
        partial(torch.set_grad_enabled, torch.is_grad_enabled()),
    ]
    found += [
        partial(torch.autocast, kind, torch.get_autocast_dtype(kind))
        for kind in ("cpu", "cuda", "mps")
        if torch.is_autocast_enabled(kind)
    ]
    if (device := torch.get_default_device()).type != "cpu":
        found.append(lambda: device)
    if torch.cuda.is_initialized():
        found.append(partial(torch.cuda.stream, torch.cuda.current_stream()))
    return found


class CUDAPrefetcher(_Around[Any]):
    """Iterate over it as over the loader, on a GPU: a batch is copied while the last computes.

    Tensors go through pinned memory on a stream of their own. They may lie in dicts, lists, tuples,
    namedtuples and what has a `to`, as BatchEncoding. On any other device each batch is moved when
    it is wanted. A session's loader counts the batches that the training got.

    Args:
        loader: a DataLoader (pin_memory=True saves a copy), or anything to iterate over.
        device: by default the current GPU, or the CPU where there is none.

    Example:
        >>> for x, y in CUDAPrefetcher(DataLoader(dataset, 64, pin_memory=True)):
        ...     train(x, y)  # both are on the GPU
    """

    def __init__(self, loader: Iterable[Any], device: str | torch.device | None = None) -> None:
        super().__init__(loader)
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._device = torch.device(device)

    def _ahead(self, batches: Iterable[Any]) -> Iterator[Any]:
        if self._device.type == "cuda":
            return self._copied(batches)
        return (to_device(batch, self._device) for batch in batches)

    def _copied(self, batches: Iterable[Any]) -> Iterator[Any]:
        stream = torch.cuda.Stream(self._device)
        ahead: list[tuple[Any, torch.cuda.Event]] = []
        for batch in batches:
            ahead.append(self._begin(batch, stream))
            if len(ahead) == 2:
                yield self._hand_over(*ahead.pop(0))
            # The loader may fill the same pinned memory again.
            ahead[-1][1].synchronize()
        for batch, done in ahead:
            yield self._hand_over(batch, done)

    def _begin(self, batch: Any, stream: torch.cuda.Stream) -> tuple[Any, torch.cuda.Event]:
        """Copy a batch on the stream; when it will be there."""
        # What holds tensors that `tensors` does not see: its memory is not used again before the
        # consumer's work so far is through.
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            copied = moved(batch, lambda leaf: _pinned(leaf).to(self._device, non_blocking=True))
            return copied, stream.record_event()

    def _hand_over(self, batch: Any, done: torch.cuda.Event) -> Any:
        """Have the consumer's stream wait for a batch, and its memory for the consumer's stream."""
        current = torch.cuda.current_stream(self._device)
        current.wait_event(done)
        for tensor in tensors(batch):
            tensor.record_stream(current)
        return batch


def _pinned(leaf: Any) -> Any:
    return leaf.pin_memory() if isinstance(leaf, torch.Tensor) and not leaf.is_cuda else leaf
