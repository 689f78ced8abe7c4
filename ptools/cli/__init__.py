"""The front door: `main`, with the one place where errors become messages and exit codes."""

import os
import re
import sys
from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from ptools import __version__
from ptools.errors import SHOW_TRACEBACK, PtoolsError, UsageError
from ptools.files import nearest_project

if TYPE_CHECKING:
    from typer import Context, TyperException

INTERRUPTED = 130
_OWN_TABLE = re.compile(rb"tool[\"'\s]*\.[\"'\s]*ptools")
BUG = 70


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0 done, 1 the work failed, 2 usage or target, 3 a check found what it looks for, 70 a bug of
    ours, 130 Ctrl-C. With `--debug` or PTOOLS_DEBUG=1 errors are raised instead.
    """
    args = sys.argv[1:] if argv is None else list(argv)
    try:
        code = _run(args)
        if sys.stdout is not None:  # closed before we started
            sys.stdout.flush()
        return code
    except BrokenPipeError:
        from ptools import console

        console.abandon_stdout()
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if _wants_debug(args):
            raise
        return _report(error, as_json="--json" in args)


def _run(args: list[str]) -> int:
    if "--version" in _root_options(args):  # answered before Typer is imported
        from ptools import console

        console.write(f"ptools {__version__}\n")
        return 0
    if _is_plain_info(args):  # nor does this wait for it: looking takes less than Typer's start
        from ptools.cli.ckpt_pages import show_info

        return show_info(args[2:], json=False)
    if args[:1] == ["launch"] and _nothing_is_set("launch"):
        from ptools.cli import launch_pages

        if (plain := launch_pages.plain(args[1:])) is not None:  # nor does a run
            words, options = plain
            return launch_pages.run(words, **options)
    if args[:1] == ["pack-lmdb"] and _nothing_is_set("pack-lmdb"):
        from ptools.cli import pack_lmdb_pages

        if (packing := pack_lmdb_pages.plain(args[1:])) is not None:  # nor does packing
            source, options = packing
            return pack_lmdb_pages.run(source, **options)
    import typer

    from ptools.cli.app import group

    try:
        code = group.main(args or ["--help"], prog_name="ptools", standalone_mode=False)
    except typer.TyperException as error:
        raise _usage_error(error) from error
    return code if isinstance(code, int) else 0


def _is_plain_info(args: list[str]) -> bool:
    """Whether it is `fix-ckpt info CKPT`, with no option given in any way."""
    named = len(args) == 3 and args[:2] == ["fix-ckpt", "info"] and not args[2].startswith("-")
    return named and _nothing_is_set("fix-ckpt")


def _nothing_is_set(command: str) -> bool:
    """Whether no option can come from the environment or from pyproject.toml."""
    prefix = f"PTOOLS_{command.upper().replace('-', '_')}_"
    if any(name.startswith(prefix) for name in os.environ):
        return False
    project = nearest_project()
    return project is None or not _OWN_TABLE.search(project.read_bytes())


def _report(error: Exception, as_json: bool) -> int:
    from ptools import console

    say = console.error_json if as_json else console.error
    if isinstance(error, PtoolsError):
        say(error.message, error.hint)
        return error.exit_code
    if isinstance(error, OSError):
        say(str(error), SHOW_TRACEBACK)
        return 1
    import traceback

    traceback.print_exception(error)
    say(f"{type(error).__name__}: {error}", "this is a bug of ptools: please report it as above")
    return BUG


def _usage_error(error: "TyperException") -> UsageError:
    context = getattr(error, "ctx", None)
    message = error.format_message().rstrip(".")
    hint = f"see {context.command_path} --help" if context else None
    parameter = getattr(error, "param", None)
    if context and parameter:
        message += _origin(context, parameter.name)
    return UsageError(message, hint=hint)


def _origin(context: "Context", name: str) -> str:
    """Where a refused value came from, when it was not typed on the command line."""
    source = context.get_parameter_source(name)
    if source is None or source.name not in ("DEFAULT_MAP", "ENVIRONMENT"):
        return ""
    if source.name == "DEFAULT_MAP":
        return f" (from {nearest_project()})"
    return f" (from {context.auto_envvar_prefix}_{name.upper()})"


def _wants_debug(args: Sequence[str]) -> bool:
    return "--debug" in _root_options(args) or os.environ.get("PTOOLS_DEBUG", "0") not in ("", "0")


def _root_options(args: Sequence[str]) -> list[str]:
    """What stands before the command."""
    return list(takewhile(lambda arg: arg.startswith("-"), args))
