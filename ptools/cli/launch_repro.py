"""`ptools launch --repro`: the job runs twice, and each process is compared with its twin."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ptools.cli.launch_again import Launches

if TYPE_CHECKING:
    from ptools.program.process import Ended


def run_twice(words: Sequence[str], module: bool, seed: int | None, **options: Any) -> int:
    """Launch a script twice, and say where the runs of a rank part."""
    from ptools import console
    from ptools.launcher.job import Job, check
    from ptools.repro.engine import repro_script
    from ptools.repro.render import page

    check(Job(words[0], tuple(words[1:]), "module" if module else "script"))
    launches = Launches("ptools.repro.child", options)
    # `launch` would give both runs one seed of hash() with it.
    seeded = {} if seed is None else {"PTOOLS_SEED": str(seed)}

    def run(words: Sequence[str], variables: Mapping[str, str], quiet: bool) -> "Ended":
        return launches(words, {**variables, **seeded}, quiet)

    report = repro_script(words[0], words[1:], module=module, runner=run, say=console.note)
    launches.tell()
    console.show(page(report))
    return report.exit_code
