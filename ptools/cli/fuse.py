"""`ptools fuse`."""

import math
import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ptools.cli.options import (
    ArgumentsOption,
    ForceOption,
    InputOption,
    JsonOption,
    TargetArgument,
)
from ptools.errors import UsageError

if TYPE_CHECKING:
    from ptools.fusion import FusionReport
    from ptools.fusion.render import Written

EXAMPLES = """\b
Examples:
  ptools fuse examples/fuse.py -o fused.pt
  ptools fuse examples/fuse.py:build -a width=32 --no-latency --json
"""
NOT_EQUAL = 3
_OTHERS = {".pt2": "--pt2", ".onnx": "--onnx"}


@dataclass(frozen=True)
class _Outputs:
    """The files to write."""

    output: Path | None
    pt2: Path | None
    onnx: Path | None
    force: bool

    @property
    def paths(self) -> list[Path]:
        return [path for path in (self.output, self.pt2, self.onnx) if path is not None]

    def check(self, target: str, ckpt: Path | None) -> None:
        """Refuse before anything runs what would be refused when it is written."""
        from ptools.files import atomic_write
        from ptools.fusion.formats import check_onnx
        from ptools.fusion.saved import check_name

        if self.onnx is not None:
            check_onnx()
        if self.output is not None:
            check_name(self.output)
        if self.output is not None and (option := _OTHERS.get(self.output.suffix)):
            raise UsageError(
                f"-o writes weights, not a {self.output.suffix} file",
                hint=f"did you mean {option} {self.output}?",
            )
        read = [Path(target.partition(":")[0]), *([ckpt] if ckpt is not None else [])]
        seen = {path.resolve() for path in read}
        for path in self.paths:
            if path.resolve() in seen:
                raise UsageError(f"{path} is named twice", hint="write to different files")
            seen.add(path.resolve())
            with suppress(FileNotFoundError), atomic_write(path, self.force):
                pass  # nothing to place yet: only the destination is looked at

    def write(self, report: "FusionReport") -> Iterator["Written"]:
        """Write them one by one."""
        from ptools.fusion.formats import save_onnx, save_pt2
        from ptools.fusion.render import Written
        from ptools.fusion.saved import save_fused

        model, example = report.model, report.example
        if self.output is not None:
            note = (
                f"{save_fused(report, self.output, self.force)}: for a freshly built {report.name}"
            )
            line = f"model = ptools.load_fused(model, {str(self.output)!r})"
            yield Written(self.output, note, line)
        if self.pt2 is not None:
            note = save_pt2(model, example, self.pt2, self.force)
            yield Written(self.pt2, note, f"model = torch.export.load({str(self.pt2)!r}).module()")
        if self.onnx is not None:
            note = save_onnx(model, example, self.onnx, self.force)
            yield Written(self.onnx, note, f"onnxruntime.InferenceSession({str(self.onnx)!r})")

    def say_unwritten(self) -> None:
        """Name the files that there would be."""
        from ptools import console

        for path in self.paths:
            console.error(f"{path} was not written: the fused model is not equal")


def fuse(
    target: TargetArgument,
    arguments: ArgumentsOption = None,
    ckpt: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Weights to load first, strictly (.pt, .safetensors)."),
    ] = None,
    input: InputOption = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="TARGET",
            help="A DataLoader or Dataset, as train.py:loader: compare on its batches too.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Write the weights, for ptools.load_fused."
        ),
    ] = None,
    pt2: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a program of torch.export, which needs no class."),
    ] = None,
    onnx: Annotated[Path | None, typer.Option(metavar="FILE", help="Write an ONNX model.")] = None,
    channels_last: Annotated[
        bool, typer.Option("--channels-last", help="Lay out memory channels last, too.")
    ] = False,
    inplace_relu: Annotated[
        bool, typer.Option("--inplace-relu", help="Let activations overwrite their input, too.")
    ] = False,
    dtype: Annotated[
        Literal["bf16", "fp16"] | None, typer.Option(help="Cast to 16 bits after folding, too.")
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Measure 8-bit integers, calibrated with --data.")
    ] = False,
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Largest error allowed, as a share of the output's spread.  "
            "[1e-4; more for 16 bits]"
        ),
    ] = None,
    assume_traced: Annotated[
        bool,
        typer.Option("--assume-traced", help="Fold also where code was not reached by the inputs."),
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail rather than guess an input.")
    ] = False,
    no_latency: Annotated[
        bool, typer.Option("--no-latency", help="Do not measure the speed.")
    ] = False,
    force: ForceOption = False,
    json: JsonOption = False,
) -> int:
    """Batch norms folded and branches merged, proven equal.

    Convolutions and linear layers take on the batch norms and parallel branches around them, where
    the dataflow of real forwards and torch.export's graph both prove that nothing else sees the
    difference; then outputs are compared. The model keeps its class. Without -o, --pt2 or --onnx
    nothing is written. Exit code 3: the error is above --tolerance, and nothing was written.
    """
    from ptools import console
    from ptools.inputs import parse_dtype
    from ptools.usercode import quiet_stdout

    if tolerance is not None and not (tolerance > 0 and math.isfinite(tolerance)):
        raise UsageError(f"--tolerance {tolerance:.15g} is not above 0", hint="write 1e-4")
    outputs = _Outputs(output, pt2, onnx, force)
    outputs.check(target, ckpt)
    options = {
        "channels_last": channels_last,
        "inplace_relu": inplace_relu,
        "dtype": parse_dtype(dtype) if dtype else None,
        "int8": int8,
        "tolerance": tolerance,
        "assume_traced": assume_traced,
        "strict": strict,
        "latency": not no_latency,
    }
    with console.progress(f"fusing {target}"), quiet_stdout():
        report = _fuse(target, arguments or [], ckpt, input, data, options)
    written: list[Written] = []
    try:  # a disk that is full must not cost the page, nor what was written before
        with console.progress(f"writing {report.name}"), quiet_stdout():
            written.extend(outputs.write(report) if report.equal else ())
    finally:
        _show(report, written, json)
    if not report.equal:
        outputs.say_unwritten()
    return 0 if report.equal else NOT_EQUAL


def _fuse(
    spec: str,
    arguments: list[str],
    ckpt: Path | None,
    input: list[str] | None,
    data: str | None,
    options: dict[str, Any],
) -> "FusionReport":
    from torch import nn

    from ptools import inputs
    from ptools.fusion import fuse
    from ptools.fusion.weights import load_weights
    from ptools.target import resolve, resolve_loader

    given = inputs.parse(input) if input else None
    target = resolve(spec, arguments)
    model = target.build()
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"{spec} is no model but of type {type(model).__name__}", hint="write model.py:Net"
        )
    if ckpt is not None:
        load_weights(model, ckpt, shlex.quote(spec))
    loader = resolve_loader(data).build() if data else None
    return fuse(model.eval(), given, data=loader, namespace=target.namespace, **options)


def _show(report: "FusionReport", written: Sequence["Written"], json: bool) -> None:
    from ptools import console
    from ptools.fusion.render import page

    for warning in report.warnings:
        console.warn(console.escaped(warning))
    if json:
        files = [str(file.path) for file in written]
        console.show_json("fuse", report.to_dict() | {"written": files})
    else:
        console.show(page(report, written))
