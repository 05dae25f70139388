"""Joining a Ray cluster, or starting a local one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from selfmoe_ray.errors import UserError

# Ray copies a job's working directory to a folder of this name, which goes away with the cluster.
UPLOADED_WORKING_DIR = "_ray_pkg_"


@contextmanager
def ray_session(verbose: bool = False) -> Iterator[None]:
    """Connect to the cluster of this job (or RAY_ADDRESS), else start one on this machine."""
    import ray

    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    # Ray's own bars and one-line notices would bury the progress that the run prints.
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        ray.init(log_to_driver=verbose, logging_level="INFO" if verbose else "ERROR")
    except ConnectionError as error:
        raise UserError(
            f"no Ray cluster at {os.environ.get('RAY_ADDRESS', 'the default address')}: {error}\n"
            "  start one (ray start --head), or unset RAY_ADDRESS to run on this machine alone"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def check_root(root: str) -> None:
    """Refuse a relative root where the current folder is Ray's temporary copy of it."""
    if UPLOADED_WORKING_DIR in os.getcwd() and "://" not in root and not os.path.isabs(os.path.expanduser(root)):
        raise UserError(
            f"root: {root!r} is relative, but a submitted job runs in a temporary copy of its working directory.\n"
            "  give a folder that every node sees: --set root=/shared/runs (or s3://..., gs://...)"
        )


def user_error(error: BaseException) -> UserError | None:
    """The UserError behind an exception that crossed process borders, if there is one."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, UserError):
            return seen
        seen = getattr(seen, "cause", None) or seen.__cause__
    return None
