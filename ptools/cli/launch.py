"""`ptools launch`."""

import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ptools.cli.launch_pages import run
from ptools.cli.options import DryRunOption
from ptools.errors import UsageError

EXAMPLES = """\b
Examples:
  ptools launch --gpus cpu -n 2 examples/launch.py --steps 3
  ptools launch --gpus cpu -n 2
"""
# All that follows SCRIPT is the script's own.
SETTINGS = {"allow_interspersed_args": False, "ignore_unknown_options": False}


def launch(
    script: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SCRIPT [ARGS]...]",
            show_default=False,
            help="A script and its arguments: all that follows is the script's. Without one, the "
            "machine is checked: versions, GPUs, real processes that talk to each other.",
        ),
    ] = None,
    gpus: Annotated[
        str | None,
        typer.Option(help="How many (4), which (0,2), all, or cpu; all there are by default."),
    ] = None,
    procs: Annotated[
        int | None, typer.Option("--procs", "-n", min=1, help="Processes; one a GPU by default.")
    ] = None,
    module: Annotated[
        bool, typer.Option("--module", "-m", help="SCRIPT is a module, as for python -m.")
    ] = False,
    nodes: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Machines: run this on each, with --master. Under SLURM, what that says.",
        ),
    ] = None,
    master: Annotated[
        str | None,
        typer.Option(metavar="HOST[:PORT]", help="Where they meet: the address of one of them."),
    ] = None,
    elastic: Annotated[
        str | None,
        typer.Option(metavar="MIN:MAX", help="As --nodes: go on with fewer, take in more."),
    ] = None,
    restarts: Annotated[
        int, typer.Option(metavar="K", min=0, help="Begin anew after a failure, K times at most.")
    ] = 0,
    show: Annotated[
        Literal["first", "all"],
        typer.Option(help="Show rank 0 alone, and others when they fail; or all, with [rank]."),
    ] = "first",
    logs: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A new folder for the output of every rank.")
    ] = None,
    hang: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", min=1, help="Show all stacks when nobody printed or moved so long."
        ),
    ] = None,
    grace: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", min=0, help="How long processes may take to end before kill -9."
        ),
    ] = 30.0,
    amp: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="bf16, fp16 or off, told to Accelerate, Fabric and ptools.train; apex's O0 to O3 "
            "are understood.",
        ),
    ] = None,
    inject: Annotated[
        bool,
        typer.Option("--inject", help="With --amp bf16: autocast the models of any other script."),
    ] = False,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed Python, NumPy and torch in every process.")
    ] = None,
    debug: Annotated[
        bool,
        typer.Option(
            "--debug",
            help="Watch each process as ptools debug does, and name the rank and line of the first "
            "NaN or in-place bug; with the checks of torch.distributed and NCCL.",
        ),
    ] = False,
    repro: Annotated[
        bool,
        typer.Option(
            "--repro",
            help="Run twice and compare each process with its twin as ptools repro does, and "
            "under DistributedDataParallel the ranks with each other.",
        ),
    ] = False,
    dry_run: DryRunOption = False,
) -> int:
    """Run a script in several processes, and say how it ended.

    Each process finds the others as under torchrun. Rank 0 prints as if it ran alone; when one
    fails, the report names the first and its line, and the exit code is that of its script.
    Ctrl-C once ends all in order, twice at once; kill -9 of the launcher leaves no process.
    """
    words = script or []
    words = words[1:] if words[:1] == ["--"] else words
    if not words:
        return _preflight(gpus, procs)
    where: dict[str, Any] = {
        "procs": procs,
        "gpus": gpus,
        "module": module,
        "nodes": elastic or nodes,
        "master": master,
        "restarts": restarts,
    }
    if dry_run:
        from ptools import console
        from ptools.launcher.engine import dry_run as equivalent

        command, variables = equivalent(words[0], words[1:], **where)
        lines = [f"{name}={shlex.quote(value)} \\" for name, value in variables.items()]
        console.write("\n".join([*lines, command]) + "\n")
        return 0
    how: dict[str, Any] = {
        "show": show,
        "logs": logs,
        "grace": grace,
        "hang": hang,
        "amp": amp,
        "inject": inject,
        "seed": seed,
    }
    if repro:
        if debug or not _is_one_machine(where):
            raise UsageError(
                "--repro compares runs on one machine, without --debug or --restarts",
                hint="ptools launch --gpus cpu -n 2 --repro train.py",
            )
        from ptools.cli.launch_repro import run_twice

        return run_twice(words, **where, **how)
    if debug and _is_one_machine(where):
        from ptools.cli.launch_debug import run_watched

        return run_watched(words, **where, **how)
    return run(words, **where, **how, debug=debug)


def _is_one_machine(where: dict[str, Any]) -> bool:
    """Whether all processes are here: a run on several machines cannot be run again from one."""
    from ptools.launcher.engine import where_to_meet

    return where_to_meet(where["nodes"], where["master"], where["restarts"]) is None


def _preflight(gpus: str | None, procs: int | None) -> int:
    from ptools import console
    from ptools.launcher.devices import choose
    from ptools.launcher.preflight import run_preflight
    from ptools.launcher.preflight.render import page

    devices = choose(gpus, procs)
    report = run_preflight(devices.procs, devices.gpus)
    console.write(page(report))
    return report.exit_code
