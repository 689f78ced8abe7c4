"""Profile a loader: measure, take apart, search, and judge."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import DataLoader, Dataset

from ptools.cores import usable_cores
from ptools.errors import PtoolsError, UsageError
from ptools.loader_profile import steady
from ptools.loader_profile.clocks import CLOCKS
from ptools.loader_profile.cold import evict, files_of, resident
from ptools.loader_profile.conclude import conclude
from ptools.loader_profile.consumer import step_seconds
from ptools.loader_profile.isolate import PATIENCE, isolated
from ptools.loader_profile.phases import Profiler
from ptools.loader_profile.rebuild import batch_size_is_fixed
from ptools.loader_profile.report import LoaderProfile, Settings

_SAMPLED = 1000  # files, to see whether they were evicted
_STAYED = 0.1
_FEW = 10  # parts of a pipeline
_BATCH_SIZE = 32  # for a dataset that comes without a loader


def profile_loader(
    loader: Any,
    *,
    step_ms: float | None = None,
    model: nn.Module | None = None,
    workers: Sequence[int] | None = None,
    batch_sizes: Sequence[int] = (),
    budget: float = 60.0,
    cold: bool = False,
    lines: bool = False,
    target: str = "",
    progress: Callable[[str], None] | None = None,
) -> LoaderProfile:
    """Measure a DataLoader, say what holds it back and which settings are better.

    The loader itself is not iterated: each run is a forked process with a loader of the same parts.
    So nothing stays patched and no random state moves. Without workers torch's own operations have
    one thread there, as they have in workers. Of another iterable the rate alone is measured; a
    Dataset is given a DataLoader.

    Args:
        loader: a DataLoader, a Dataset, or any iterable that gives batches.
        step_ms: what a training step takes, in milliseconds.
        model: a model whose step is measured instead, with a batch of this loader.
        workers: try these numbers of workers, rather than search.
        batch_sizes: try these too.
        budget: seconds for all runs together.
        cold: evict the dataset's files from the page cache before each run.
        lines: name the source lines that take the time.
        target: what to call the loader in the report.
        progress: called with what is being done.

    Raises:
        UsageError: it is no loader, or an argument does not fit it.
        PtoolsError: the loader raises, gives nothing, or needs more shared memory than there is.

        profile = ptools.profile_loader(loader, step_ms=50)
        print(profile.verdict, profile.best)
    """
    warnings: list[str] = []
    loader = _measurable(loader, target, warnings)
    step = _step(loader, step_ms, model)
    if not isinstance(loader, DataLoader):
        return _of_iterable(loader, step, budget, target)
    if batch_sizes and batch_size_is_fixed(loader):
        raise UsageError(
            "the batch size of this loader is made by its own sampler or dataset",
            hint="leave --batch-sizes out",
        )
    evicted = _evicted(loader, warnings) if cold else []
    say = progress or (lambda _: None)
    profiler = Profiler(loader, step=step, budget=budget, evicted=evicted, say=say)
    interrupted = False
    try:
        profiler.describe()
        profiler.measure()
        _explore(profiler, workers, batch_sizes, lines)
    except KeyboardInterrupt:
        interrupted = True
        if profiler.found.current is None:
            raise
    profile = conclude(loader, profiler.found, target, interrupted)
    return replace(profile, warnings=(*warnings, *profile.warnings))


def _explore(
    profiler: Profiler, workers: Sequence[int] | None, batch_sizes: Sequence[int], lines: bool
) -> None:
    """All that comes after the rate, which stands whatever becomes of this."""
    warnings = profiler.found.warnings
    try:
        profiler.take_apart()
        profiler.limit_threads()
        profiler.search(workers, batch_sizes)
        profiler.compare()
        if lines:
            profiler.name_lines()
            if not profiler.has_lines:
                warnings.append("--lines: no line of your own code was seen at work")
    except PtoolsError as error:
        warnings.append(f"some of it could not be measured: {error.message}")


def _measurable(loader: Any, target: str, warnings: list[str]) -> Any:
    """The DataLoader that is meant, or another iterable."""
    if isinstance(loader, DataLoader):
        if type(loader).__iter__ is not DataLoader.__iter__:
            name = type(loader).__name__
            said = f"{name} iterates in its own way: measured as a DataLoader of its parts"
            warnings.append(said)
        return loader
    if (inner := _inner(loader)) is not None:
        name = type(loader).__name__
        warnings.append(f"{name} wraps a DataLoader: what it does itself is not measured")
        return inner
    if isinstance(loader, Dataset):
        warnings.append(f"a dataset has no settings: taken as DataLoader(batch_size={_BATCH_SIZE})")
        return DataLoader(loader, batch_size=_BATCH_SIZE)
    if not isinstance(loader, Iterable) or isinstance(loader, (str, bytes)):
        raise UsageError(
            f"{target or 'this'} is no loader but of type {type(loader).__name__}",
            hint="name a DataLoader, a Dataset, or a function that returns one",
        )
    return loader


def _inner(loader: Any) -> DataLoader[Any] | None:
    """The DataLoader that something else wraps, as those of Fabric, timm and webdataset do."""
    held = [*getattr(loader, "__dict__", {}).values()]
    held += [part for value in held if isinstance(value, list) for part in value[:_FEW]]
    return next((one for one in held if isinstance(one, DataLoader)), None)


def _step(loader: Any, step_ms: float | None, model: nn.Module | None) -> float:
    if step_ms is not None and model is not None:
        raise UsageError("a step has a time or a model to measure it with, not both")
    if model is not None:
        return step_seconds(model, loader)
    return (step_ms or 0.0) / 1e3


def _evicted(loader: DataLoader[Any], warnings: list[str]) -> list[Path]:
    """The files of a dataset, which are out of the page cache now."""
    files = files_of(loader.dataset)
    if not files:
        raise UsageError(
            "the dataset names no files that could be evicted",
            hint="leave --cold out; its attributes are searched for paths",
        )
    evict(files)
    if (share := resident(files[:_SAMPLED])) > _STAYED:
        warnings.append(f"{share:.0%} of the files stay in the page cache: not quite cold")
    return files


def _of_iterable(loader: Any, step: float, budget: float, target: str) -> LoaderProfile:
    """The rate of what is no DataLoader."""
    seconds = budget / 6
    run = partial(steady.run, loader, Settings(0), seconds)
    current = isolated(run, PATIENCE + 4 * seconds)
    with_step = isolated(partial(run, step), PATIENCE + 4 * seconds) if step else None
    return LoaderProfile(
        target=target,
        cores=usable_cores(),
        clocks=CLOCKS,
        current=current,
        with_step=with_step,
        batches_per_epoch=len(loader) if hasattr(loader, "__len__") else None,
        warnings=("it is no DataLoader: it was measured, but cannot be taken apart",),
    )
