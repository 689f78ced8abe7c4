"""What a database on the disk can have wrong with it."""

from ptools.errors import PtoolsError


class DamagedDatabase(PtoolsError):
    """Bytes that are not what was written: cut short, overwritten, or never finished."""


class NotADatabase(PtoolsError):
    """No database that can be read here, or one of a kind that is not known."""
