"""Joining a Ray cluster, or starting a local one."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from selfmoe_ray.errors import UserError
from selfmoe_ray.machines import processes
from selfmoe_ray.machines.environment import mend_environment
from selfmoe_ray.machines.limits import usable_cores

# Ray copies a job's working directory to a folder of this name, which goes away with the cluster.
UPLOADED_WORKING_DIR = "_ray_pkg_"
# In the environment of all processes of a local cluster: a value of that cluster's own.
CLUSTER = "SELFMOE_RAY_CLUSTER"
# What a local cluster's processes have to end by themselves.
_GRACE_SECONDS = 10


@contextmanager
def ray_session(verbose: bool = False) -> Iterator[None]:
    """Connect to the cluster that RAY_ADDRESS names (a submitted job's does), else start one here.

    Without it Ray would also try whatever cluster was last started on this machine, for minutes where
    that one is gone.
    """
    import ray

    mend_environment()
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    # Ray's own bars and one-line notices would bury the progress that the run prints.
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # A busy machine takes longer than the default 30 s to start Ray's own processes.
    os.environ.setdefault("RAY_agent_register_timeout_ms", "120000")
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")
    os.environ.setdefault("RAY_worker_register_timeout_seconds", "300")
    # Workers do the work here: without this they stand back for Ray's own processes.
    os.environ.setdefault("RAY_worker_niceness", "0")
    on_sigterm = signal.getsignal(signal.SIGTERM)
    mark = uuid.uuid4().hex
    try:
        with nullcontext() if "RAY_ADDRESS" in os.environ else _local_cluster(mark):
            ray.init(
                address=os.environ.get("RAY_ADDRESS", "local"),
                # By itself Ray knows no affinity, and takes a quota below one core for none.
                num_cpus=None if "RAY_ADDRESS" in os.environ else usable_cores(),
                # On a cluster of our own nobody looks at it.
                include_dashboard=None if "RAY_ADDRESS" in os.environ else False,
                log_to_driver=verbose,
                logging_level="INFO" if verbose else "ERROR",
            )
    except ConnectionError as error:
        raise UserError(
            f"RAY_ADDRESS: no Ray cluster at {os.environ.get('RAY_ADDRESS')}: {error}\n"
            "  start one (ray start --head), or unset RAY_ADDRESS to run on this machine alone"
        ) from None
    # Ray installs a handler of its own, which would end the run without a word.
    signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield
    finally:
        ray.shutdown()
        # A worker of Ray now and then hangs while it ends; on a cluster that is not ours its node minds it.
        processes.end(CLUSTER, mark, _GRACE_SECONDS)


@contextmanager
def _local_cluster(mark: str) -> Iterator[None]:
    """What starts meanwhile carries the mark."""
    os.environ[CLUSTER] = mark
    try:
        yield
    finally:
        del os.environ[CLUSTER]


def check_root(root: str) -> None:
    """Refuse a relative root where the current folder is Ray's temporary copy of it."""
    if UPLOADED_WORKING_DIR in os.getcwd() and "://" not in root and not os.path.isabs(os.path.expanduser(root)):
        raise UserError(
            f"root: {root!r} is relative, but a submitted job runs in a temporary copy of its working directory.\n"
            "  give a folder that every node sees: --set root=/shared/runs (or s3://..., gs://...)"
        )


def beside_driver() -> Any:
    """Where what costs nothing and must not be lost runs: on the node that, gone, takes the driver along anyway.

    Not softly: Ray now and then gave an actor to another node while the driver's could have had it.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
