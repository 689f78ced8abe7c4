"""`ptools launch --debug`: each process is watched as by `ptools debug`."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ptools.cli.launch_again import Launches

if TYPE_CHECKING:
    from ptools.program.process import Ended


def run_watched(words: Sequence[str], module: bool, **options: Any) -> int:
    """Launch a script, again if something was seen, and say what was found."""
    from ptools import console
    from ptools.debug.engine import debug_script
    from ptools.debug.render import page
    from ptools.launcher.job import Job, check

    check(Job(words[0], tuple(words[1:]), "module" if module else "script"))
    launches = Launches("ptools.debug.child", {**options, "debug": True})

    def run(words: Sequence[str], variables: Mapping[str, str], quiet: bool) -> "Ended":
        # Their page-long C++ stacks help nobody when the lines are named.
        plain = {"TORCH_SHOW_CPP_STACKTRACES": os.environ.get("TORCH_SHOW_CPP_STACKTRACES", "0")}
        return launches(words, {**plain, **variables}, quiet)

    report = debug_script(
        words[0],
        words[1:],
        module=module,
        seed=options["seed"],
        runner=run,
        say=console.note,
    )
    if not report.findings:
        launches.tell()
    console.show(page(report))
    return report.exit_code
