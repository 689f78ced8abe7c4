"""Packing on a Ray cluster."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ptools.image_lmdb.engine import pack_lmdb

pytest.importorskip("ray")
pytestmark = pytest.mark.slow

Images = Callable[..., Path]
Contents = Callable[[Path], dict[str, bytes]]
Expected = Callable[..., dict[str, bytes]]

# In a process of its own: Ray leaves threads and settings behind.
LOCAL = """
import json, sys, ray
from ptools.errors import PtoolsError
from ptools.image_lmdb.engine import pack_lmdb
ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
source, options = sys.argv[1], json.loads(sys.argv[2])
try:
    report = pack_lmdb(source, "out.lmdb", engine="ray", **options)
    print(json.dumps(report.to_dict()))
except PtoolsError as error:
    print(json.dumps([error.message, error.hint]))
"""
CLUSTER = """
import json, sys, threading, time, ray
from pathlib import Path
from ray.cluster_utils import Cluster
from ptools.image_lmdb.engine import pack_lmdb
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
lost = cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, log_to_driver=False)
gone = []

def lose_a_node():
    while len(list(Path("out.lmdb.part").glob("*.done"))) < 3:
        time.sleep(0.01)
    cluster.remove_node(lost, allow_graceful=False)
    gone.append(len(list(Path("out.lmdb.part").glob("*.done"))))

watcher = threading.Thread(target=lose_a_node)
watcher.start()
report = pack_lmdb(sys.argv[1], "out.lmdb", engine="ray", **json.loads(sys.argv[2]))
watcher.join()
assert gone[0] < report.shards, "the node was lost too late"
print(json.dumps(report.to_dict()))
ray.shutdown()
cluster.shutdown()
"""


def run(code: str, source: Path, **options: Any) -> Any:
    command = [sys.executable, "-c", code, str(source), json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    (result,) = (line for line in done.stdout.splitlines() if line.startswith(("{", "[")))
    return json.loads(result)


def test_a_local_cluster_packs_the_same_bytes(
    images: Images, contents: Contents, expected: Expected
) -> None:
    source = images()
    (source / "class 0/bad.jpg").write_bytes(b"bad")
    report = run(LOCAL, source, shard_size=1)
    assert (report["images"], report["shards"], len(report["skipped"])) == (12, 13, 1)
    assert contents(Path("out.lmdb")) == expected(source, shard_size=1)
    assert not Path("out.lmdb.part").exists()


def test_an_error_on_a_node_is_the_same_error(images: Images) -> None:
    source = images()
    (source / "class 1/00005.jpg").write_bytes(b"bad")
    message, hint = run(LOCAL, source, shard_size=1, on_error="fail")
    assert message.startswith(f"{source}/class 1/00005.jpg: ")
    assert "--on-error skip" in hint


def test_finished_shards_are_kept(images: Images, contents: Contents, expected: Expected) -> None:
    source = images()
    pack_lmdb(source, "out.lmdb", shard_size=1, part="1/2")
    assert run(LOCAL, source, shard_size=1)["shards_kept"] == 6
    assert contents(Path("out.lmdb")) == expected(source, shard_size=1)


def test_a_node_that_is_lost_costs_its_shards_only(
    folder: Path, picture: Callable[..., bytes], contents: Contents, expected: Expected
) -> None:
    data = picture(0, 2000)
    for number in range(40):
        path = folder / f"imgs/c/{number:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    options: dict[str, Any] = {"shard_size": 1, "check": "decode", "resize_short": 1500}
    report = run(CLUSTER, folder / "imgs", **options)
    assert report["images"] == 40
    assert contents(Path("out.lmdb")) == expected(folder / "imgs", **options)
