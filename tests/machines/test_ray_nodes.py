"""Several Ray nodes on this machine: each is asked, and those that are to come are waited for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Timer
from typing import Any

import pytest

from selfmoe_ray.base_model import BaseModel, resolve
from selfmoe_ray.config import ClusterResources
from selfmoe_ray.errors import UserError
from selfmoe_ray.machines.ray_checks import require_healthy_nodes, resolve_on_nodes
from selfmoe_ray.machines.ray_nodes import ask_every_node, read_cluster, wait_for_devices

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    import ray
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=2)
    made.wait_for_nodes()
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()


def test_every_node_is_asked(cluster: Any, tmp_path: Path) -> None:
    nodes = require_healthy_nodes(str(tmp_path))
    assert len(nodes) == 2 and not list(tmp_path.iterdir())
    assert sorted(read_cluster().node_cpus) == [1, 2] and min(read_cluster().node_memory) > 0


def sleep_a_while() -> str:
    time.sleep(4)
    return "awake"


def test_a_node_that_goes_away_while_it_is_asked_is_none_of_them(cluster: Any) -> None:
    node = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    Timer(2, cluster.remove_node, [node], {"allow_graceful": False}).start()
    assert [answer for _, answer in ask_every_node(sleep_a_while, seconds=60)] == ["awake"] * 2


def test_a_root_that_nodes_cannot_write_is_refused(cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        require_healthy_nodes(str(tmp_path / "file" / "runs"))


def test_the_base_has_to_be_at_one_path_on_all_nodes(cluster: Any, tiny_model_dir: Callable[..., Path]) -> None:
    base = resolve(str(tiny_model_dir()))
    resolve_on_nodes(base, trust_remote_code=False)
    with pytest.raises(UserError, match=f"(?s)is at /elsewhere.*it is at {base.path}.*HF_HOME"):
        resolve_on_nodes(BaseModel(base.value, "/elsewhere", base.content_hash), trust_remote_code=False)


def test_nodes_that_do_not_come_are_named_at_the_deadline(cluster: Any) -> None:
    said: list[str] = []
    wanted = ClusterResources(gpus=2, wait_seconds=1)
    with pytest.raises(UserError, match="after 1 s the cluster has 0 of 2 GPUs"):
        wait_for_devices(wanted, lambda kind, **fields: said.append(fields["message"]))
    assert said == ["waiting for nodes: the cluster has 0 of 2 GPUs"]


def test_work_begins_when_the_nodes_are_there(cluster: Any) -> None:
    wait_for_devices(
        ClusterResources(gpus=2, wait_seconds=60), lambda *_, **__: cluster.add_node(num_cpus=1, num_gpus=2)
    )
    assert sum(read_cluster().node_gpus) == 2
