"""The processes of a run, and what each finds in its environment."""

from typing import NamedTuple


class World(NamedTuple):
    """All processes of a run, seen from one of its machines."""

    procs: int  # on this machine
    master_port: int
    run_id: str
    threads: int  # OMP_NUM_THREADS of each
    nodes: int = 1
    node_rank: int = 0
    master_addr: str = "127.0.0.1"
    gpus: tuple[str, ...] | None = None  # for CUDA_VISIBLE_DEVICES; () hides all, None leaves it
    interface: str | None = None  # of the network that the machines share
    restart: int = 0  # how often the processes have been started again
    restarts: int = 0  # how often they may be
    agent_store: bool = False  # something listens on the master's port already

    @property
    def world_size(self) -> int:
        return self.procs * self.nodes

    def rank(self, local_rank: int) -> int:
        return self.node_rank * self.procs + local_rank


def environment(world: World, local_rank: int, outer: dict[str, str]) -> dict[str, str]:
    """What a process needs to find the others: all that torchrun sets, and what it leaves out.

    `torch.distributed.is_torchelastic_launched`, Accelerate, Fabric and Lightning look at it.
    What the user has set of threads stays.
    """
    rank = str(world.rank(local_rank))
    found = {
        **outer,
        "RANK": rank,
        "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": str(world.world_size),
        "LOCAL_WORLD_SIZE": str(world.procs),
        "GROUP_RANK": str(world.node_rank),
        "GROUP_WORLD_SIZE": str(world.nodes),
        "ROLE_NAME": "default",
        "ROLE_RANK": rank,
        "ROLE_WORLD_SIZE": str(world.world_size),
        "MASTER_ADDR": world.master_addr,
        "MASTER_PORT": str(world.master_port),
        "TORCHELASTIC_RUN_ID": world.run_id,
        "TORCHELASTIC_RESTART_COUNT": str(world.restart),
        "TORCHELASTIC_MAX_RESTARTS": str(world.restarts),
        "TORCHELASTIC_USE_AGENT_STORE": str(world.agent_store),
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": outer.get("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1"),
        "OMP_NUM_THREADS": outer.get("OMP_NUM_THREADS", str(world.threads)),
    }
    if world.gpus is not None:
        found["CUDA_VISIBLE_DEVICES"] = ",".join(world.gpus)
    if world.gpus == ():
        # Accelerate would otherwise start as many independent trainings as there are processes.
        found["ACCELERATE_USE_CPU"] = "true"
    if world.interface is not None:
        for library in ("GLOO", "NCCL"):
            found.setdefault(f"{library}_SOCKET_IFNAME", world.interface)
    return found
