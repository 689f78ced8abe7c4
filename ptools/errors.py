"""The errors a user is meant to read."""

SHOW_TRACEBACK = "PTOOLS_DEBUG=1 shows the traceback"  # the hint when there is nothing better


class PtoolsError(Exception):
    """Something the user can act on: what is wrong, and what to type next.

    The command line prints it as `error: MESSAGE` and `hint: HINT` and exits with `exit_code`.
    """

    def __init__(self, message: str, hint: str | None = None, exit_code: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code


class UsageError(PtoolsError):
    """The call itself is wrong: a bad target, option, or configuration (exit code 2)."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message, hint, exit_code=2)
