"""The Typer app and its commands: a new one is an import and a line here."""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ptools.cli import (
    config,
    debug,
    fix_ckpt,
    fuse,
    init,
    launch,
    lmdb,
    pack_lmdb,
    profile_loader,
    repro,
    seed,
    summary,
)

EPILOG = """\b
An option not given is looked for in the environment (PTOOLS_SUMMARY_JSON=1),
then in the nearest pyproject.toml ([tool.ptools.summary], json = true).

\b
Examples:
  ptools summary model.py:Net
  ptools summary --help
"""

# No Rich markup: it eats [brackets] in help texts, and costs more than the rest of the start.
app = typer.Typer(
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={
        "auto_envvar_prefix": config.PREFIX,
        "help_option_names": ["-h", "--help"],
    },
    epilog=EPILOG,
)

app.command(epilog=summary.EXAMPLES)(summary.summary)
app.command(epilog=fix_ckpt.EXAMPLES)(fix_ckpt.fix_ckpt)
app.command(epilog=fuse.EXAMPLES)(fuse.fuse)
app.command(epilog=pack_lmdb.EXAMPLES)(pack_lmdb.pack_lmdb)
app.command(epilog=profile_loader.EXAMPLES)(profile_loader.profile_loader)
app.command(epilog=debug.EXAMPLES, context_settings=debug.SETTINGS)(debug.debug)
app.command(epilog=init.EXAMPLES)(init.init)
app.command(epilog=repro.EXAMPLES, context_settings=repro.SETTINGS)(repro.repro)
app.command(epilog=seed.EXAMPLES, context_settings=seed.SETTINGS)(seed.seed)
app.command(epilog=launch.EXAMPLES, context_settings=launch.SETTINGS)(launch.launch)
app.add_typer(lmdb.app, name="lmdb", epilog=lmdb.EXAMPLES)


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", allow_from_autoenv=False, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool,
        typer.Option(
            "--debug",
            allow_from_autoenv=False,
            help="Show the traceback of an error; so does PTOOLS_DEBUG=1.",
        ),
    ] = False,
) -> None:
    """A toolbox for PyTorch users."""
    # main() answers --version and acts on --debug; they stand here for the help page.
    context.default_map = config.load(group.commands)


def _build() -> TyperGroup:
    built = typer.main.get_command(app)
    assert isinstance(built, TyperGroup)
    for command in commands_of(built).values():
        for parameter in command.params:
            # The epilog says it once for all options.
            parameter.show_envvar = False
    return built


def commands_of(group: TyperGroup, prefix: str = "") -> dict[str, Any]:
    """A group and all commands in it, by what is typed after `ptools`."""
    found: dict[str, Any] = {prefix: group}
    for name, command in group.commands.items():
        words = f"{prefix} {name}".strip()
        found |= (
            commands_of(command, words) if isinstance(command, TyperGroup) else {words: command}
        )
    return found


group = _build()
