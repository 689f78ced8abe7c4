"""Pack the shards of a plan on a Ray cluster."""

from collections.abc import Sequence
from pathlib import Path

from ptools.errors import PtoolsError
from ptools.image_lmdb.packing import Advance, pack_shard
from ptools.image_lmdb.plan import Plan
from ptools.image_lmdb.report import ShardReport
from ptools.image_lmdb.store import PLAN, Store, open_store


def pack_on_ray(
    plan: Plan, store: Store, indexes: Sequence[int], advance: Advance
) -> list[ShardReport]:
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
        advance(plan.parts[index].images, plan.parts[index].bytes)
    return [reports[index] for index in indexes]


def _on_a_node(output: str, index: int) -> dict[str, object]:
    store = open_store(output)
    store.workspace.mkdir(exist_ok=True)
    return pack_shard(Plan.load(store.fetch(PLAN)), index, store, jobs=1).to_dict()
