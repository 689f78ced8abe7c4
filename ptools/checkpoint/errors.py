"""What can be wrong with a checkpoint."""

from ptools.errors import PtoolsError


class CorruptCheckpoint(PtoolsError):
    """The file is damaged, truncated, or does not add up (exit code 1)."""


class NotACheckpoint(PtoolsError):
    """The file is something else, or a kind of checkpoint that is not read (exit code 2)."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message, hint, exit_code=2)
