"""A set of paths on the disk."""

import os
import sqlite3

from ptools.errors import PtoolsError


class PathSet:
    """Paths that were met, in a file that SQLite deletes: memory stays flat.

    Raises:
        PtoolsError: the disk for temporary files is full.
    """

    def __init__(self) -> None:
        self._table = sqlite3.connect("")
        self._table.execute("CREATE TABLE met (path BLOB PRIMARY KEY) WITHOUT ROWID")

    def add(self, path: str) -> bool:
        """Add a path; tells whether it is new."""
        try:
            insert = "INSERT OR IGNORE INTO met VALUES (?)"
            return self._table.execute(insert, (os.fsencode(path),)).rowcount == 1
        except sqlite3.OperationalError as error:
            message = f"cannot keep a list of the paths in a temporary file: {error}"
            raise PtoolsError(message, "name a folder with more space in SQLITE_TMPDIR") from error

    def __contains__(self, path: str) -> bool:
        query = "SELECT 1 FROM met WHERE path = ?"
        return self._table.execute(query, (os.fsencode(path),)).fetchone() is not None
