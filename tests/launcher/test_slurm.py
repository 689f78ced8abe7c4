import pytest

from ptools.errors import UsageError
from ptools.slurm import SlurmWorld, expand, from_slurm, per_task_error

TASK = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "2",
    "SLURM_NODEID": "2",
    "SLURM_STEP_NUM_NODES": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "gpu[01-03,07]",
    "SLURM_JOB_NODELIST": "gpu[01-03,07],login",
    "SLURM_NNODES": "5",
}


# The forms in the manual of scontrol, `show hostnames`, and of slurm.conf, NodeName.
@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("login", "login"),
        ("gpu[01-03,07],login", "gpu01 gpu02 gpu03 gpu07 login"),
        ("lx[0-3]", "lx0 lx1 lx2 lx3"),
        ("tux[1-2,4]", "tux1 tux2 tux4"),
        ("tux[1,2,5]-ib,tux9", "tux1-ib tux2-ib tux5-ib tux9"),
        ("linux[0009-0011]", "linux0009 linux0010 linux0011"),
        ("rack[0-1]_blade[8-9]", "rack0_blade8 rack0_blade9 rack1_blade8 rack1_blade9"),
        ("a[8-11]", "a8 a9 a10 a11"),
        ("n[098-101]", "n098 n099 n100 n101"),
        ("node-1.cluster.local,node-2.cluster.local", "node-1.cluster.local node-2.cluster.local"),
    ],
)
def test_a_list_of_hosts_is_expanded_as_scontrol_does(text: str, hosts: str) -> None:
    assert expand(text) == hosts.split()


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",",
        "a[",
        "a]",
        "a[1-",
        "a[3-1]",
        "a[x]",
        "a[]",
        "a[[1]]",
        "a,,b",
        "a b",
        "a[1-999999999]",
        "r[0-999]c[0-999]",
        "[1-2][",
        "a[-3]",
        "a[1,]",
    ],
)
def test_a_list_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="list of machines"):
        expand(text)


def test_outside_of_slurm_there_is_no_world() -> None:
    assert from_slurm({}) is None


def test_a_task_on_each_machine_is_a_world() -> None:
    world = from_slurm(TASK)
    assert world is not None
    assert (world.nodes, world.node_rank, world.master) == (4, 2, "gpu01")
    assert not world.launched_per_task and world.procs_per_node is None
    assert 20000 <= world.port < 30000 and world.run_id == "4711.0"


def test_all_tasks_of_a_step_find_the_same_place_and_other_steps_another() -> None:
    def place(**more: str) -> tuple[str, int, str]:
        world = from_slurm({**TASK, **more})
        assert world is not None
        return world.master, world.port, world.run_id

    assert place() == place(SLURM_PROCID="3", SLURM_NODEID="3")
    assert place()[1:] != place(SLURM_STEP_ID="1")[1:]


def test_a_task_for_each_gpu_is_told_what_to_do() -> None:
    world = from_slurm({**TASK, "SLURM_STEP_NUM_TASKS": "32", "SLURM_PROCID": "17"})
    assert world is not None and world.launched_per_task and world.procs_per_node == 8
    error = per_task_error(world)
    assert "8 tasks on each machine" in error.message
    assert error.hint is not None and "--ntasks-per-node=1" in error.hint


def test_the_variables_of_the_job_serve_where_those_of_the_step_are_missing() -> None:
    job = {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": "1",
        "SLURM_NODEID": "1",
        "SLURM_NNODES": "2",
        "SLURM_NTASKS": "2",
        "SLURM_JOB_NODELIST": "a,b",
    }
    world = from_slurm(job)
    assert isinstance(world, SlurmWorld) and world.master == "a" and world.node_rank == 1


@pytest.mark.parametrize("extra", [{}, {"SLURM_STEP_ID": "4294967290", "SLURM_PROCID": "0"}])
def test_several_machines_without_srun_are_refused(extra: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="has 2 machines") as caught:
        from_slurm({"SLURM_JOB_ID": "1", "SLURM_NNODES": "2", **extra})
    assert caught.value.hint is not None and "srun" in caught.value.hint


def test_a_job_of_one_machine_is_like_no_slurm() -> None:
    assert from_slurm({"SLURM_JOB_ID": "1", "SLURM_NNODES": "1"}) is None
    one = {**TASK, "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NODEID": "0"}
    assert from_slurm({**one, "SLURM_STEP_NODELIST": "gpu01"}) is None


@pytest.mark.parametrize("name", ["SLURM_NODEID", "SLURM_STEP_NUM_TASKS"])
def test_what_is_missing_is_named_and_never_guessed(name: str) -> None:
    environ = {key: value for key, value in TASK.items() if key != name}
    with pytest.raises(UsageError, match="is not set"):
        from_slurm(environ)


def test_a_missing_list_of_hosts_is_no_reason_for_localhost() -> None:
    environ = {key: value for key, value in TASK.items() if "NODELIST" not in key}
    with pytest.raises(UsageError, match="SLURM_JOB_NODELIST is not set"):
        from_slurm(environ)


@pytest.mark.parametrize(
    "wrong",
    [
        {"SLURM_NODEID": "4"},
        {"SLURM_STEP_NODELIST": "gpu[01-03]"},
        {"SLURM_STEP_NUM_TASKS": "5"},
        {"SLURM_STEP_NUM_TASKS": "many"},
        {"SLURM_STEP_NUM_TASKS": "2"},
        {"SLURM_STEP_NUM_NODES": "0"},
    ],
)
def test_a_contradiction_is_an_error(wrong: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="contradicts itself"):
        from_slurm({**TASK, **wrong})
