"""Run a program in a mode, in this process."""

from collections.abc import Callable

from ptools.debug.mode import Log, Mode, Stop, watching


def run_in(mode: Mode, program: Callable[[], object]) -> Log:
    """What the mode has logged when the program is through, or was stopped."""
    try:
        with watching(mode):
            program()
    except Stop:
        pass
    mode.log.keep_going = True
    mode.finish()
    return mode.log
