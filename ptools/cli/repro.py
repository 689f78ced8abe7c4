"""`ptools repro`."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ptools.cli.options import ForceOption, JsonOption
from ptools.errors import UsageError

if TYPE_CHECKING:
    from ptools.program.process import Processes

EXAMPLES = """\b
Examples:
  ptools repro examples/repro.py
  ptools repro --perturb fs,threads examples/repro.py --sorted
"""
# All that follows SCRIPT is the script's own.
SETTINGS = {"allow_interspersed_args": False, "ignore_unknown_options": False}
# The ways to run a program with which an option does something; "" runs it twice.
_FITTING = {
    "--perturb": ("",),
    "--steps": ("", "--record", "--against"),
    "--exact": ("", "--record", "--against"),
    "--tolerance": ("", "--against"),
    "--resume-args": ("--resume-at",),
    "--force": ("--record",),
}


def _resume(words: list[str], at: int, more: str, module: bool, json: bool) -> int:
    import shlex

    from ptools import console
    from ptools.repro.resume.engine import resume_script
    from ptools.repro.resume.report import page

    try:
        extra = shlex.split(more)
    except ValueError as error:
        raise UsageError(f"--resume-args: {error}", hint="close its quotes") from error
    ways: dict[str, Any] = {"module": module, "runner": _runner(json), "say": console.note}
    report = resume_script(words[0], words[1:], at=at, more=extra, **ways)
    if json:
        console.show_json("repro", report.to_dict())
    else:
        console.show(page(report))
    return report.exit_code


def _check(typed: Iterable[str], given: Mapping[str, object]) -> None:
    """Refuse what cannot be done at once.

    Args:
        typed: options of this command line; those of a project's file may say nothing here.
        given: the values of the options that have the program run in another way.
    """
    ways = [name for name, value in given.items() if value is not None]
    if ways[1:]:
        raise UsageError(f"{' and '.join(ways)} do not go together", hint="give one of them")
    for name in typed:
        fitting = _FITTING.get(name, ("", *ways))
        if ways and ways[0] not in fitting:
            raise UsageError(f"{name} does nothing with {ways[0]}", hint=f"leave {name} out")
        if not ways and "" not in fitting:
            raise UsageError(f"{name} is for {fitting[0]}", hint=f"give {fitting[0]} as well")


def _typed(context: typer.Context) -> list[str]:
    """The options of the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = [name for name, source in sources.items() if source and source.name == "COMMANDLINE"]
    return [f"--{name.replace('_', '-')}" for name in given]


def _runner(json: bool) -> "Processes":
    """How the program is run: what it prints must not come between the JSON."""
    from ptools.program.process import Processes

    return Processes("ptools.repro.child", aside=json)


def _record(words: list[str], record: Path, force: bool, ways: dict[str, Any], json: bool) -> int:
    from ptools import console
    from ptools.repro.fingerprints.against import record_script
    from ptools.repro.fingerprints.render_record import page

    recorded = record_script(words[0], words[1:], record=record, force=force, **ways)
    if json:
        console.show_json("repro", recorded.to_dict())
    else:
        console.show(page(recorded))
    return recorded.exit_code


def repro(
    context: typer.Context,
    script: Annotated[
        list[str],
        typer.Argument(
            metavar="SCRIPT [ARGS]...",
            show_default=False,
            help="A script and its arguments: all that follows is the script's.",
        ),
    ],
    perturb: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="What the second run has otherwise: hash (the seed of hash()), fs (the order of "
            "folders' entries), threads (their number), time (the clock); or none.",
        ),
    ] = "hash,fs",
    steps: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="End each run after so many steps.")
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Compare each operation all along; slow.")
    ] = False,
    resume_at: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Kill the second run after so many steps, resume it, and see whether it goes on "
            "bit for bit as the first.",
        ),
    ] = None,
    resume_args: Annotated[
        str,
        typer.Option(
            metavar="ARGS",
            help='With --resume-at: arguments with which the script resumes: "--resume last.pt".',
        ),
    ] = "",
    record: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Run once, and write what was computed to a file."),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Run once, and compare with what --record wrote, on another machine or version.",
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            metavar="ERROR",
            help="The relative error, as 1e-5, that losses and states may have; without it, runs "
            "are compared bit for bit.",
        ),
    ] = None,
    force: ForceOption = False,
    module: Annotated[
        bool, typer.Option("--module", "-m", help="SCRIPT is a module, as for python -m.")
    ] = False,
    json: JsonOption = False,
) -> int:
    """The first line at which two runs differ.

    Runs the script twice as it is, the second time with what a run must not depend on changed on
    purpose, and compares batches, losses and parameters bit for bit. Where they part, both are run
    again up to there, and the report names the operation, its line and why. Exit code 3: the runs
    part; else the script's own.
    """
    words = script[1:] if script[:1] == ["--"] else script
    if not words:
        raise UsageError("no script is given", hint="ptools repro train.py --its options")
    given = {"--resume-at": resume_at, "--record": record, "--against": against}
    _check(_typed(context), given)
    if module and words[0].partition(".")[0] == "ptools":
        raise UsageError(
            f"-m {words[0]} is not recorded: it starts another Python",
            hint="give the script itself, and seed it by ptools.seed_everything(0)",
        )
    if resume_at is not None:
        return _resume(words, resume_at, resume_args, module, json)
    from ptools import console
    from ptools.repro.render import page

    ways: dict[str, Any] = {"module": module, "steps": steps, "exact": exact}
    ways |= {"runner": _runner(json), "say": console.note}
    if record is not None:
        return _record(words, record, force, ways, json)
    if against is not None:
        from ptools.repro.fingerprints.against import repro_against

        report = repro_against(words[0], words[1:], record=against, tolerance=tolerance, **ways)
    else:
        from ptools.repro.engine import repro_script

        perturbed = [] if perturb == "none" else [name.strip() for name in perturb.split(",")]
        report = repro_script(words[0], words[1:], perturb=perturbed, tolerance=tolerance, **ways)
    if json:
        console.show_json("repro", report.to_dict())
    else:
        console.show(page(report))
    return report.exit_code
