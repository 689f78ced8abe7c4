"""`ptools fix-ckpt`."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ptools.cli.ckpt_pages import NOT_EQUAL, only_checkpoint, show_diff, show_info
from ptools.cli.options import ArgumentsOption, DryRunOption, ForceOption, JsonOption

EXAMPLES = """\b
Examples:
  ptools fix-ckpt examples/last.ckpt --to cpu --dry-run
  ptools fix-ckpt info examples/last.ckpt
"""
_LARGE = 256 << 20  # bytes


def fix_ckpt(
    checkpoint: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[info|diff] CKPT [CKPT]",
            show_default=False,
            help="A file or folder: torch (zip, legacy, whole modules, TorchScript), safetensors, "
            "shards with their index, DCP, DeepSpeed ZeRO, Lightning. Without one, the only one "
            "here. 'info' shows what is in it, 'diff' compares two.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The file to write; by default beside CKPT."),
    ] = None,
    to: Annotated[
        str, typer.Option(help="Where to load it: cpu, cuda:0, meta (no data), or keep.")
    ] = "cpu",
    model: Annotated[
        str | None,
        typer.Option(
            metavar="TARGET",
            help="The model to load it into (model.py:Net, or another checkpoint): decides how "
            "names change, and proves that they fit. Runs the code in model.py.",
        ),
    ] = None,
    arguments: ArgumentsOption = None,
    strip: Annotated[
        list[str] | None,
        typer.Option(metavar="PREFIX", help="Remove a prefix; 'none' leaves wrappers' names in."),
    ] = None,
    rename: Annotated[
        list[str] | None,
        typer.Option(metavar="REGEX=REPL", help="Rename tensors; may be repeated."),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Keep only these: names, globs, entries."),
    ] = None,
    drop: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Leave these out.")
    ] = None,
    weights_only: Annotated[
        bool, typer.Option("--weights-only", help="Write the state_dict alone.")
    ] = False,
    ema: Annotated[
        bool, typer.Option("--ema", help="The same, with the moving average of the weights.")
    ] = False,
    dtype: Annotated[
        str | None, typer.Option(help="Store the weights as bf16, fp16, fp32 or fp64.")
    ] = None,
    compact: Annotated[
        bool, typer.Option("--compact", help="Cut off memory that no tensor sees.")
    ] = False,
    safetensors: Annotated[
        bool, typer.Option("--safetensors", help="Write safetensors (the weights alone).")
    ] = False,
    shard_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Write a folder of shards of at most SIZE, as 5GB."),
    ] = None,
    inplace: Annotated[
        bool, typer.Option("--inplace", help="Change CKPT itself, at once or not at all.")
    ] = False,
    hash: Annotated[
        bool, typer.Option("--hash", help="Put the file's SHA-256 in its name, for torch.hub.")
    ] = False,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> int:
    """Make any checkpoint load under the model's own names.

    The file is edited, not loaded: nothing in its pickle is imported or executed, weights are
    copied as they are, and memory stays small. Removes what DataParallel, DDP, FSDP and
    torch.compile add to names, moves weights to the CPU, and converts or leaves out what
    torch.load(weights_only=True) refuses. Exit code 3: it does not fit --model, or diff differs.
    """
    words = checkpoint or []
    if words[:1] == ["info"] and not Path("info").exists():
        return show_info(words[1:], json)
    if words[:1] == ["diff"] and not Path("diff").exists():
        return show_diff(words[1:], json)
    from ptools import console
    from ptools.checkpoint import fix_ckpt as fix
    from ptools.checkpoint.render import fix_page
    from ptools.files import parse_bytes

    path = only_checkpoint(words)
    options: dict[str, Any] = {
        "to": to,
        "model": _model(model, arguments or []) if model else None,
        "strip": strip or [],
        "rename": rename or [],
        "keep": keep or [],
        "drop": drop or [],
        "weights_only": weights_only,
        "ema": ema,
        "dtype": dtype,
        "compact": compact,
        "safetensors": safetensors,
        "shard_size": parse_bytes(shard_size) if shard_size else None,
        "inplace": inplace,
        "hash": hash,
        "force": force,
        "dry_run": dry_run,
    }
    with _bar(path) as advance:
        report = fix(path, output, **options, advance=advance)
    if json:
        console.show_json("fix-ckpt", report.to_dict())
    else:
        console.write(fix_page(report))
    return 0 if report.match is None or report.match.complete else NOT_EQUAL


def _model(spec: str, arguments: list[str]) -> Any:
    """The module that `spec` names, on meta; or the names and shapes of another checkpoint."""
    from ptools.checkpoint.formats import open_checkpoint
    from ptools.target import checkpoint_path, resolve

    if (path := checkpoint_path(spec)) is not None:
        from ptools.checkpoint.containers import choose_weights, find_weights

        weights = choose_weights(find_weights(open_checkpoint(path).root), ema=False)
        return {name: tensor.shape for name, tensor in weights.tensors().items()}
    import torch

    target = resolve(spec, arguments)
    try:
        with torch.device("meta"):
            return target.build()
    except Exception:  # some models compute with their weights while they are made
        return target.build()


@contextmanager
def _bar(path: Path) -> Iterator[Callable[[float], None]]:
    """A bar for what takes more than a moment; Rich is not loaded for less."""
    from ptools.console import progress

    size = path.stat().st_size if path.is_file() else _LARGE if path.is_dir() else 0
    if size < _LARGE or not sys.stderr.isatty():
        yield lambda amount: None
        return
    with progress(f"writing {path.name}", total=size) as advance:
        yield advance
