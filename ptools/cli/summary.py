"""`ptools summary`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ptools.cli.options import ArgumentsOption, InputOption, JsonOption, TargetArgument

if TYPE_CHECKING:
    from ptools.summary import Summary
    from ptools.usercode import Interpreter

EXAMPLES = """\b
Examples:
  ptools summary examples/summary.py --depth 2
  ptools summary examples/summary.py:Net -a width=32 --train --batch 8
"""


def summary(
    target: TargetArgument,
    arguments: ArgumentsOption = None,
    input: InputOption = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="The first dimension of every input.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Weights and inputs in this dtype, as bfloat16.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail rather than guess an input.")
    ] = False,
    backward: Annotated[
        bool, typer.Option("--backward", help="Count the backward too, in training mode.")
    ] = False,
    train: Annotated[
        bool, typer.Option("--train", help="Measure the memory of a training step.")
    ] = False,
    optimizer: Annotated[
        str,
        typer.Option(help="For --train: adamw, 'sgd(momentum=0.9)', any of torch.optim, none."),
    ] = "adamw",
    fit: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Find the largest batch that trains in SIZE, as 24GB."),
    ] = None,
    advise: Annotated[
        bool, typer.Option("--advise", help="Say what about the design costs speed.")
    ] = False,
    diff: Annotated[
        str | None, typer.Option(metavar="TARGET", help="Set a second target beside this one.")
    ] = None,
    by: Annotated[
        Literal["module", "type", "op", "line"], typer.Option(help="What a row stands for.")
    ] = "module",
    depth: Annotated[
        int, typer.Option(min=0, help="Levels of the tree to show; 0 is the model alone.")
    ] = 3,
    sort: Annotated[
        Literal["order", "macs", "parameters", "activations"],
        typer.Option(help="The tree in order, or single layers by cost."),
    ] = "order",
    json: JsonOption = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print every row as CSV.")] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table as Markdown.")
    ] = False,
    tensorboard: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write the graph for TensorBoard to a new run in DIR."),
    ] = None,
) -> None:
    """Layers, shapes, parameters, FLOPs and memory of any model.

    No weights are allocated and nothing is downloaded, so size does not matter. A checkpoint
    (.pt, .pth, .ckpt, .bin, .safetensors) is read without executing its pickle: parameters only.
    """
    from ptools import inputs
    from ptools.errors import UsageError
    from ptools.files import parse_bytes
    from ptools.summary import ForwardError
    from ptools.usercode import Interpreter

    if json + csv + markdown > 1:
        raise UsageError("--json, --csv and --markdown exclude each other")
    settings: dict[str, Any] = {
        "inputs": inputs.parse(input) if input else None,
        "batch": batch,
        "dtype": inputs.parse_dtype(dtype) if dtype else None,
        "strict": strict,
        "backward": backward,
        "train": train,
        "optimizer": optimizer,
        "fit": parse_bytes(fit) if fit else None,
        "advise": advise,
        "tensorboard": tensorboard,
    }
    show = _Show(by, depth, sort, json, csv, markdown)
    interpreter = Interpreter()
    try:
        first = _summarize(target, arguments or [], settings, interpreter)
    except ForwardError as error:
        if not json:
            show.summary(error.summary)
        raise
    if diff is None:
        show.summary(first)
    else:
        show.difference(first, _summarize(diff, [], settings, interpreter))


@dataclass(frozen=True)
class _Show:
    """How the result is to be shown."""

    by: Literal["module", "type", "op", "line"]
    depth: int
    sort: Literal["order", "macs", "parameters", "activations"]
    json: bool
    csv: bool
    markdown: bool

    def summary(self, summary: "Summary") -> None:
        from ptools import console
        from ptools.summary.export import csv_text, markdown
        from ptools.summary.render import render
        from ptools.summary.table import table_of

        if self.json:
            console.show_json("summary", summary.to_dict())
        elif self.csv:
            console.write(csv_text(summary, self.by))
        else:
            table = table_of(summary, self.by, self.depth, self.sort)
            if self.markdown:
                console.write(markdown(table))
            else:
                console.show(render(summary, table))

    def difference(self, left: "Summary", right: "Summary") -> None:
        from ptools import console
        from ptools.errors import UsageError
        from ptools.summary.diff import diff_table, render_diff
        from ptools.summary.export import markdown

        if self.csv:
            raise UsageError("--diff has no --csv", hint="use --json or --markdown")
        if self.json:
            console.show_json("summary", {"diff": [left.to_dict(), right.to_dict()]})
        elif self.markdown:
            console.write(markdown(diff_table(left, right, self.depth)))
        else:
            console.show(render_diff(left, right, self.depth))


def _summarize(
    spec: str, arguments: list[str], settings: dict[str, Any], interpreter: "Interpreter"
) -> "Summary":
    from ptools import console
    from ptools.errors import UsageError
    from ptools.summary import summarize, summarize_checkpoint
    from ptools.target import checkpoint_path, resolve
    from ptools.usercode import quiet_stdout

    if (path := checkpoint_path(spec)) is not None:
        needs_code = ("inputs", "backward", "train", "fit", "advise", "tensorboard")
        if asked := [name.removesuffix("s") for name in needs_code if settings[name]]:
            raise UsageError(f"{path} holds no code to run, so there is no --{asked[0]} for it")
        return summarize_checkpoint(path)
    beside: dict[str, Any] = {}
    label = spec

    def build() -> Any:
        nonlocal label
        interpreter.restore()  # the file's own instances were built without weights
        target = resolve(spec, arguments)
        beside.update(target.namespace)
        label = target.label
        return target.build()

    with console.progress(f"summarising {spec}"), quiet_stdout():
        summary = summarize(build, namespace=beside, **settings)
    return summary if beside else replace(summary, model=label)
