"""Pack the shards of a plan: here, in several processes, or on a Ray cluster."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Lock, Thread

from ptools.errors import PtoolsError
from ptools.image_lmdb.packing import pack_shard
from ptools.image_lmdb.plan import Plan
from ptools.image_lmdb.progress import Meter, Progress
from ptools.image_lmdb.report import ShardReport
from ptools.image_lmdb.store import PLAN, Store, open_store

Add = Callable[[int, int], None]  # count images and bytes of the source


def pack_here(plan: Plan, store: Store, indexes: Sequence[int], add: Add) -> list[ShardReport]:
    """Pack shards one after the other in this process."""
    return [pack_shard(plan, index, store, add) for index in indexes]


def pack_in_processes(
    plan: Plan, store: Store, indexes: Sequence[int], jobs: int, add: Add
) -> list[ShardReport]:
    """Pack shards in `jobs` processes at a time, each by its own interpreter.

    Raises:
        PtoolsError: a process raised one, or ended without a word.
    """
    lock = Lock()

    def locked_add(images: int, nbytes: int) -> None:
        with lock:
            add(images, nbytes)

    # Nothing is ever written: its end tells the processes that this one is gone, even by kill -9.
    leash, end = os.pipe()
    threads = ThreadPoolExecutor(jobs)
    try:
        futures = [
            threads.submit(_in_a_process, plan, store, index, locked_add, leash)
            for index in indexes
        ]
        for future in as_completed(futures):
            future.result()
        return [future.result() for future in futures]
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        os.close(end)
        threads.shutdown()
        os.close(leash)


def _in_a_process(plan: Plan, store: Store, index: int, add: Add, leash: int) -> ShardReport:
    # -P: what lies in the current folder is found where this process would find it, if at all.
    command = [sys.executable, "-P", "-m", __name__, str(plan.file), store.output, str(index)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        command,
        stdin=leash,
        stdout=subprocess.PIPE,
        env=environment,
        process_group=0,  # Ctrl-C is for the first process, which ends the others
    ) as process:
        assert process.stdout is not None
        done: dict[str, int] = {"images": 0, "bytes": 0}
        for line in process.stdout:
            message = json.loads(line)
            if "report" in message:
                return ShardReport.from_dict(message["report"])
            if "error" in message:
                raise PtoolsError(**message["error"])
            add(message["images"] - done["images"], message["bytes"] - done["bytes"])
            done = message
    raise PtoolsError(
        f"the process that packed shard {index} ended with code {process.returncode}",
        hint="run the same command again: finished shards are kept",
    )


def pack_on_ray(plan: Plan, store: Store, indexes: Sequence[int], add: Add) -> list[ShardReport]:
    """Map the shards over a Ray cluster; what a lost node had is packed by another.

    The source and the output must be reachable under the same names from every node.

    Raises:
        PtoolsError: Ray is not installed, or a shard failed.
    """
    try:
        import ray
    except ImportError as error:
        raise PtoolsError("--engine ray needs Ray", hint="pip install 'ptools[ray]'") from error
    try:
        if not ray.is_initialized():
            ray.init(log_to_driver=False)  # the cluster of RAY_ADDRESS, or one on this machine
    except (ConnectionError, RuntimeError, ValueError) as error:
        hint = "RAY_ADDRESS=host:port names a cluster, RAY_ADDRESS=local starts one here"
        raise PtoolsError(f"no Ray cluster answers: {error}", hint) from error
    task = ray.remote(max_retries=-1, retry_exceptions=False)(_on_a_node)
    output = store.output if "://" in store.output else str(Path(store.output).absolute())
    waiting = {task.remote(output, index): index for index in indexes}
    reports: dict[int, ShardReport] = {}
    while waiting:
        (ready, *_), _ = ray.wait(list(waiting))
        index = waiting.pop(ready)
        try:
            reports[index] = ShardReport.from_dict(ray.get(ready))
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, PtoolsError):
                raise error.cause from None
            raise PtoolsError(f"shard {index}: {error.cause}") from error
        add(plan.parts[index].images, plan.parts[index].bytes)
    return [reports[index] for index in indexes]


def _on_a_node(output: str, index: int) -> dict[str, object]:
    store = open_store(output)
    store.workspace.mkdir(exist_ok=True)
    return pack_shard(Plan.load(store.fetch(PLAN)), index, store).to_dict()


def _end_with_the_leash() -> None:
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)


def _terminate(*_: object) -> None:
    sys.exit(128 + signal.SIGTERM)  # unlike the signal's own way, deletes the unfinished shard


def _main(plan_file: str, output: str, index: str) -> None:
    """The process of `pack_in_processes`: progress and the report as JSON lines on stdout."""

    def tell(message: object) -> None:
        print(json.dumps(message), flush=True)

    def progress(now: Progress) -> None:
        tell({"images": now.images, "bytes": now.bytes})

    signal.signal(signal.SIGTERM, _terminate)
    Thread(target=_end_with_the_leash, daemon=True).start()
    meter = Meter(progress, "packing")
    try:
        plan = Plan.load(Path(plan_file))
        report = pack_shard(plan, int(index), open_store(output), meter.add)
    except PtoolsError as error:
        fields = {"message": error.message, "hint": error.hint, "exit_code": error.exit_code}
        tell({"error": fields})
    else:
        tell({"report": report.to_dict()})


if __name__ == "__main__":
    _main(*sys.argv[1:])
