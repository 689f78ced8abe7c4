"""torch's elastic agent over this launcher's Supervisor. Importing this imports torch.

The agent has the rendezvous and decides about restarts; who starts, watches and ends the processes
is the Supervisor, as on one machine. https://docs.pytorch.org/docs/stable/elastic/agent.html,
"Extending the Agent".
"""

import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from torch.distributed import DistError
from torch.distributed.elastic.agent.server.api import (
    RunResult,
    SimpleElasticAgent,
    WorkerGroup,
    WorkerSpec,
    WorkerState,
)
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous import registry as rendezvous
from torch.distributed.elastic.rendezvous.api import (
    RendezvousClosedError,
    RendezvousError,
    RendezvousHandler,
    RendezvousTimeoutError,
)

from ptools.errors import PtoolsError
from ptools.launcher.multinode import Meeting
from ptools.launcher.supervisor import Outcome, Supervisor
from ptools.launcher.told import Told
from ptools.launcher.world import World

_LOOK = 0.2  # seconds between two questions whether another machine waits to join
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_agent(
    meeting: Meeting,
    world: World,
    begin: Callable[[World], Supervisor],
    say: Callable[[str], None],
) -> tuple[Outcome, World]:
    """Meet the other machines, `begin` the processes, and do so again after failures.

    Returns how the last attempt ended, and its world.

    Raises:
        PtoolsError: see run_nodes.
    """
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number in _SIGNALS:
        signal.signal(number, _give_up)
    handler = None
    agent = None
    try:
        handler = _handler(meeting)
        agent = _Agent(_spec(meeting, world, handler), world, begin)
        for number in _SIGNALS:
            signal.signal(number, agent.take)
        agent.run()
        handler.shutdown()
    except SignalException as error:
        # The rendezvous stays open: the other machines may go on.
        outcome = agent.outcome if agent else Outcome()
        outcome.signal = error.sigval
    except (RendezvousError, DistError) as error:
        message = _explained(error, meeting)
        if agent is None or not agent.outcome.failures:
            raise message from error
        say(message.message)
    finally:
        for number, before_it in before.items():
            signal.signal(number, before_it)
    return (agent.outcome, agent.world) if agent else (outcome, world)


class _Agent(SimpleElasticAgent):
    """What SimpleElasticAgent leaves open; arguments that are not used differ between versions."""

    def __init__(
        self, spec: WorkerSpec, world: World, begin: Callable[[World], Supervisor]
    ) -> None:
        super().__init__(spec)
        self.world = world
        self.outcome = Outcome()
        self._begin = begin
        self._supervisor: Supervisor | None = None
        self._told: Told

    def take(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if self._supervisor is not None and self._supervisor.running:
            self._supervisor.take(number)
        else:
            _give_up(number, frame)

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        self.world = self._world_of(worker_group)
        self.outcome = Outcome()
        assert worker_group.store is not None
        self._told = Told(worker_group.store, self.world.node_rank, self.world.nodes)
        self._supervisor = self._begin(self.world)
        return {worker.local_rank: worker.local_rank for worker in worker_group.workers}

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        supervisor = self._supervisor
        assert supervisor is not None
        until = time.monotonic() + _LOOK
        while supervisor.running and time.monotonic() < until:
            supervisor.step()
        over = self._told.is_over()
        if supervisor.running and not over:
            return RunResult(WorkerState.HEALTHY)
        self._shutdown()
        self.outcome = supervisor.outcome()
        if self.outcome.signal is not None:
            _give_up(self.outcome.signal, None)
        if over:
            self._remaining_restarts = 0  # the rendezvous is about to be closed
            self.outcome.failures += self._told.hear()
            return RunResult(WorkerState.FAILED)
        if any(self.outcome.codes.values()):
            if self._remaining_restarts == 0:
                self._told.tell(self.outcome.failures)
                self.outcome.failures += self._told.hear()
            return RunResult(WorkerState.FAILED)
        values = {worker.global_rank: None for worker in worker_group.workers}
        return RunResult(WorkerState.SUCCEEDED, return_values=values)

    def _exit_barrier(self) -> None:
        """Torch's own would wait for machines that have failed."""
        self._told.finish()
        self.outcome.failures += self._told.hear()

    def _stop_workers(self, worker_group: WorkerGroup, *_: object, **__: object) -> None:
        self._shutdown()

    def _shutdown(
        self, death_sig: signal.Signals = signal.SIGTERM, *_: object, **__: object
    ) -> None:
        if self._supervisor is None or not self._supervisor.running:
            return
        self._supervisor.stop(death_sig)
        while self._supervisor.running:
            self._supervisor.step()
        self.outcome = self._supervisor.outcome()

    def _world_of(self, group: WorkerGroup) -> World:
        spec = group.spec
        assert group.group_world_size is not None and group.group_rank is not None
        assert group.master_addr is not None and group.master_port is not None
        world = self.world._replace(
            nodes=group.group_world_size,
            node_rank=group.group_rank,
            master_addr=group.master_addr,
            master_port=group.master_port,
            restart=spec.max_restarts - self._remaining_restarts,
            agent_store=spec.rdzv_handler.use_agent_store,
        )
        first = group.workers[0]
        if (first.global_rank, first.world_size) != (world.rank(0), world.world_size):
            raise PtoolsError(
                f"{world.procs} processes here on each of {world.nodes} machines are not the "
                f"{first.world_size} that there are in all",
                hint="give the same number of processes on all machines: -n N",
            )
        return world


def _give_up(number: int, frame: FrameType | None) -> None:
    """End the agent, from wherever it is."""
    raise SignalException(f"signal {number}", sigval=signal.Signals(number))


def _spec(meeting: Meeting, world: World, handler: RendezvousHandler) -> WorkerSpec:
    return WorkerSpec(
        role="default",
        local_world_size=world.procs,
        rdzv_handler=handler,
        entrypoint="ptools.launcher.worker",  # for its logs
        max_restarts=meeting.restarts,
        monitor_interval=0.001,  # _monitor_workers takes its time itself
        local_addr=meeting.route.address,
    )


def _handler(meeting: Meeting) -> RendezvousHandler:
    return rendezvous.get_rendezvous_handler(
        RendezvousParameters(
            backend="c10d",
            endpoint=meeting.master,
            run_id=meeting.run_id,
            min_nodes=meeting.least,
            max_nodes=meeting.most,
            local_addr=meeting.route.address,
            **meeting.settings,
        )
    )


def _explained(error: Exception, meeting: Meeting) -> PtoolsError:
    where = meeting.master
    if isinstance(error, RendezvousTimeoutError):
        return PtoolsError(
            f"fewer than {meeting.least} machines came to {where} in time",
            hint="start the same command on all of them",
        )
    if isinstance(error, RendezvousClosedError):
        return PtoolsError(
            f"the run at {where} has ended on another machine", hint="the reason is told there"
        )
    return PtoolsError(
        f"lost the master {where}, or what answers there is something else",
        hint="see how the command ended on the master",
    )
