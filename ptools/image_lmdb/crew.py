"""Processes that fill one shard together: this one, and others that it starts."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Self

from ptools.errors import PtoolsError
from ptools.image_lmdb.batch import Tally
from ptools.image_lmdb.btree import Child
from ptools.image_lmdb.filling import Filled, Placed, fill, merged
from ptools.image_lmdb.plan import Plan
from ptools.image_lmdb.report import Skipped
from ptools.image_lmdb.store import Store, open_store, writing
from ptools.image_lmdb.turns import Left, Turns
from ptools.image_lmdb.writer import End, Rows

_TOLD = 3  # the code of a process that has told its error


def fill_together(
    plan: Plan, index: int, store: Store, file: Path, descriptor: int, members: int, placed: Placed
) -> tuple[End, Filled]:
    """Fill a shard by so many processes, this one among them, to the same bytes as by one.

    Raises:
        PtoolsError: one of them raised it, or ended without a word.
    """
    blocks = plan.parts[index].blocks
    with _Crew(plan, index, store, file, members) as crew:
        try:
            own = list(fill(plan, index, descriptor, crew.turns, placed))
            end = crew.turns.wait_for_all()
        except Left:
            crew.wait()
            raise
        crew.wait()
        filled = [iter(own), *crew.filled()]
        return end, merged(next(filled[block % members]) for block in range(blocks))


class _Crew:
    """The other processes, which end when this one does."""

    def __init__(self, plan: Plan, index: int, store: Store, file: Path, members: int) -> None:
        self._command = [str(plan.file), str(index), store.output, str(file), str(members)]
        self._folder = store.workspace
        self._index = index
        self._processes: list[subprocess.Popen[bytes]] = []
        self._outputs: list[IO[bytes]] = []
        self._pipes = ExitStack()  # this process's ends
        with ExitStack() as pipes:  # all ends, closed here once every process has its own
            ring = [_pipe(pipes) for _ in range(members)]
            last = _pipe(pipes)
            inlet, outlet, end = map(self._keep, (ring[0][0], ring[1][1], last[0]))
            self.turns = Turns(plan.parts[index].blocks, 0, members, inlet, outlet, end)
            for member in range(1, members):
                outlet = ring[(member + 1) % members][1]
                self._start(member, (ring[member][0], outlet, last[1]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pipes.close()
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait()
        for output in self._outputs:
            output.close()

    def _keep(self, pipe: int) -> int:
        mine = os.dup(pipe)
        self._pipes.callback(os.close, mine)
        return mine

    def _start(self, member: int, pipes: tuple[int, int, int]) -> None:
        output = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - closed with the crew
        self._outputs.append(output)
        # -P: what lies in the current folder is found where this process would find it, if at all.
        command = [sys.executable, "-P", "-m", __name__, *self._command]
        process = subprocess.Popen(
            [*command, str(member), *map(str, pipes)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            pass_fds=pipes,
            process_group=0,  # Ctrl-C is for the first process, which ends the others
        )
        self._processes.append(process)

    def wait(self) -> None:
        """Wait for all to end; the first error that one of them told is raised."""
        self._pipes.close()  # who waits for a turn learns that there will be none
        codes = [process.wait() for process in self._processes]
        for code, output in zip(codes, self._outputs, strict=True):
            if code == _TOLD:
                *_, (message, _) = _messages(output)
                raise PtoolsError(**message["error"])
        if any(codes):
            raise PtoolsError(
                f"a process that packed shard {self._index} ended with code {max(codes, key=abs)}",
                hint="run the same command again: finished shards are kept",
            )

    def filled(self) -> list[Iterator[Filled]]:
        """What each has filled."""
        return [_filled(output) for output in self._outputs]


def _pipe(owner: ExitStack) -> tuple[int, int]:
    ends = os.pipe()
    for end in ends:
        owner.callback(os.close, end)
    return ends


def _messages(output: IO[bytes]) -> Iterator[tuple[dict[str, Any], bytes]]:
    """What a process told: JSON lines, each with bytes that follow it."""
    output.seek(0)
    for line in output:
        message = json.loads(line)
        yield message, output.read(message.get("follow", 0))


def _filled(output: IO[bytes]) -> Iterator[Filled]:
    for message, data in _messages(output):
        tally = message["tally"]
        for name in ("skipped", "kept"):
            tally[name] = [Skipped(**one) for one in tally[name]]
        leaves = [Child(bytes.fromhex(key), page) for key, page in message["leaves"]]
        rows, paths = bytearray(data[: message["rows"]]), bytearray(data[message["rows"] :])
        yield Rows(rows, paths, leaves), Tally(**tally)


def _tell(message: dict[str, Any], *data: bytes | bytearray) -> None:
    follow = sum(map(len, data))
    line = json.dumps({**message, "follow": follow}).encode() + b"\n"
    sys.stdout.buffer.write(b"".join((line, *data)))


def _main(plan_file: str, index: str, output: str, file: str, members: str, *rest: str) -> int:
    """Another process of a crew: what it filled goes to stdout."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    plan, store = Plan.load(Path(plan_file)), open_store(output)
    member, inlet, outlet, last = map(int, rest)
    turns = Turns(plan.parts[int(index)].blocks, member, int(members), inlet, outlet, last)
    descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    try:
        with writing(store):
            for rows, tally in fill(plan, int(index), descriptor, turns, lambda _: None):
                leaves = [(child.key.hex(), child.number) for child in rows.leaves]
                message = {"rows": len(rows.rows), "leaves": leaves, "tally": asdict(tally)}
                _tell(message, rows.rows, rows.paths)
            sys.stdout.flush()
    except Left:
        pass  # the one that is gone has told why
    except PtoolsError as error:
        fields = {"message": error.message, "hint": error.hint, "exit_code": error.exit_code}
        _tell({"error": fields})
        return _TOLD
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
