"""Whose turn it is: processes that fill one shard place their blocks in order, one after the other.

Each reads its blocks while others do; only then it needs the shard's end, which it moves and passes
on. So the file is the same whatever the number of processes.
"""

import os
from dataclasses import dataclass, field

from ptools.errors import PtoolsError
from ptools.image_lmdb.writer import End

_LENGTH_BYTES = 4


class Left(PtoolsError):
    """Another process is gone, and the end of the shard with it."""


@dataclass
class Turns:
    """The end of a shard, as one of its `members` sees it: block `i` is placed by `i % members`.

    `inlet` is the pipe that it comes from, `outlet` the one to the next member, and `last` the one
    on which the first member learns of the end behind all blocks. A member alone needs none.
    """

    blocks: int
    member: int = 0
    members: int = 1
    inlet: int = -1
    outlet: int = -1
    last: int = -1
    end: End = field(default_factory=End)

    def wait(self, block: int) -> End:
        """The end behind the blocks before this one."""
        if block > 0 and self.members > 1:
            self.end = _receive(self.inlet)
        return self.end

    def pass_on(self, block: int) -> None:
        """Tell who comes next that this block has its place."""
        if block < self.blocks - 1:
            if self.members > 1:
                _send(self.outlet, self.end)
        elif self.member > 0:
            _send(self.last, self.end)

    def wait_for_all(self) -> End:
        """The end behind all blocks, for the first member."""
        if (self.blocks - 1) % self.members:
            self.end = _receive(self.last)
        return self.end


def _send(pipe: int, end: End) -> None:
    data = end.pack()
    try:
        os.write(pipe, len(data).to_bytes(_LENGTH_BYTES, "little") + data)
    except BrokenPipeError as error:
        raise Left("the next process is gone") from error


def _receive(pipe: int) -> End:
    length = int.from_bytes(_read(pipe, _LENGTH_BYTES), "little")
    return End.unpack(_read(pipe, length))


def _read(pipe: int, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = os.read(pipe, length - len(data))
        if not more:
            raise Left("the process before is gone")
        data += more
    return data
