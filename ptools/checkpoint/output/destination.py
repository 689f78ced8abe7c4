"""Where the result goes, and in which format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ptools.checkpoint.checkpoint import Checkpoint
from ptools.errors import UsageError

_SAFETENSORS = ("safetensors", "sharded safetensors")
_TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")


@dataclass(frozen=True, slots=True)
class Destination:
    """Where the result goes: a file, or with `shard_size` (bytes) a folder of them."""

    path: Path
    safetensors: bool
    shard_size: int | None = None

    @property
    def format(self) -> str:
        kind = "safetensors" if self.safetensors else "torch"
        return f"sharded {kind}" if self.shard_size else kind if self.safetensors else "torch zip"


def destination(
    checkpoint: Checkpoint,
    output: Path | None,
    to: str,
    safetensors: bool,
    shard_size: int | None,
    inplace: bool,
) -> Destination:
    """Decide it from the options.

    Raises:
        UsageError: the options contradict each other, or the output is the source.
    """
    source = checkpoint.path
    if shard_size is not None and shard_size < 1:
        raise UsageError("a shard of no bytes holds nothing", hint="write --shard-size 5GB")
    was_safetensors = checkpoint.format in _SAFETENSORS
    if inplace:
        if output is not None or shard_size is not None:
            raise UsageError(
                "--inplace writes to the checkpoint itself: leave out -o and --shard-size"
            )
        if source.is_dir() or len(checkpoint.files) > 1:
            raise UsageError(f"{source} is more than one file", hint="write a new one with -o")
        if safetensors and not was_safetensors:
            raise UsageError("--inplace keeps the format", hint="leave it out to get a new file")
        return Destination(source, was_safetensors)
    if output is not None:
        _check_output(output, checkpoint)
    as_safetensors = safetensors or (
        was_safetensors if output is None or shard_size else output.suffix == ".safetensors"
    )
    if safetensors and output is not None and output.suffix in _TORCH_SUFFIXES:
        better = output.with_suffix(".safetensors")
        raise UsageError(f"{output} would look like a torch file", hint=f"call it {better}")
    if output is None:
        output = _default_name(source, to, as_safetensors, shard_size is not None)
    return Destination(output, as_safetensors, shard_size)


def _check_output(output: Path, checkpoint: Checkpoint) -> None:
    read = {path.resolve() for path in (checkpoint.path, *checkpoint.files)}
    if output.resolve() in read:
        raise UsageError(f"{output} is the checkpoint itself", hint="to change it, pass --inplace")
    if not output.parent.is_dir():
        raise UsageError(
            f"there is no folder {output.parent}", hint=f"make it with: mkdir -p {output.parent}"
        )


def _default_name(source: Path, to: str, safetensors: bool, folder: bool) -> Path:
    """`model.pth.tar` becomes `model.cpu.pth`."""
    name = source.name or source.resolve().name  # of a link its own
    if source.name in ("", ".."):  # "." has no name
        source = source.resolve()
    stem, suffix = name, ".pt"
    if not source.is_dir():
        stem = name.removesuffix(".tar").removesuffix(".index.json")
        stem, dot, last = stem.rpartition(".")
        stem, suffix = (stem, f".{last}") if dot and stem else (last, ".pt")
    done = "fixed" if to == "keep" else to.replace(":", "")
    if safetensors:
        return source.with_name(f"{stem}.{done}" + ("" if folder else ".safetensors"))
    suffix = ".pt" if suffix == ".safetensors" else suffix
    return source.with_name(f"{stem}.{done}" + ("" if folder else suffix))
