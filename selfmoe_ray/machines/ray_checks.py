"""The doctor's checks on every node of a Ray cluster; a run makes them before its work."""

from __future__ import annotations

from collections.abc import Iterator

from selfmoe_ray.base_model import BaseModel, resolve
from selfmoe_ray.errors import UserError
from selfmoe_ray.machines.checks import Finding, Node, check_nodes, look_at_node, mark_of_driver
from selfmoe_ray.machines.hardware import FastDtype, fast_dtype
from selfmoe_ray.machines.ray_nodes import ask_every_node

ANSWER_SECONDS = 120
# Long enough to fetch a large model.
RESOLVE_SECONDS = 4 * 3600


def diagnose_cluster(root: str) -> Iterator[Finding]:
    """Have each node of the cluster that RAY_ADDRESS names look at itself. Raises UserError where there is none,
    or where the root is relative in a submitted job."""
    from selfmoe_ray.machines.ray_session import check_root, ray_session

    check_root(root)
    with ray_session():
        yield from look_at_nodes(root)[1]


def require_healthy_nodes(root: str) -> list[Node]:
    """Every node as it sees itself. Raises UserError where one cannot do a run's work: other versions, or a root
    that it cannot write, or that is another folder there than here. Needs a running Ray."""
    nodes, findings = look_at_nodes(root)
    problems = [f"  {each.check}: {each.found}; {each.remedy}" for each in findings if each.status == "failed"]
    if problems:
        raise UserError("\n".join(["the cluster's nodes cannot do this run's work:", *problems]))
    return nodes


def look_at_nodes(root: str) -> tuple[list[Node], list[Finding]]:
    """What each node sees, and what that says about the cluster. Needs a running Ray."""
    nodes, findings = [], []
    with mark_of_driver(root) as mark:
        for host, answer in ask_every_node(look_at_node, root, mark, seconds=ANSWER_SECONDS):
            if isinstance(answer, Node):
                nodes.append(answer)
            else:
                findings.append(
                    Finding(f"node {host}", "failed", answer, "install selfmoe_ray there, from the same lock")
                )
        return nodes, [*findings, *check_nodes(look_at_node(root, mark), nodes, root)]


def resolve_on_nodes(base: BaseModel, trust_remote_code: bool) -> None:
    """Have the base model on every node at the driver's path, which engines are given; fetches it where missing.

    Raises UserError where a node cannot have it, or has it elsewhere. Needs a running Ray.
    """
    problems = []
    for host, answer in ask_every_node(resolve, base.value, trust_remote_code, seconds=RESOLVE_SECONDS):
        if not isinstance(answer, BaseModel):
            problems.append(f"  node {host}: {answer}")
        elif answer != base:
            problems.append(f"  node {host}: it is at {answer.path} with content hash {answer.content_hash}")
    if problems:
        where = f"base_model: {base.value!r} is at {base.path} with content hash {base.content_hash} here, but"
        remedy = "  use one image on all nodes, the same HF_HOME, or give a directory that every node sees"
        raise UserError("\n".join([where, *problems, remedy]))


def fast_dtype_of_cluster() -> FastDtype:
    """`fast_dtype` of the cluster that RAY_ADDRESS names: what all of its GPU nodes, or else all nodes, are fast in.

    Raises UserError where there is no cluster or no node answers.
    """
    from selfmoe_ray.machines.ray_session import ray_session

    with ray_session():
        answers = [answer for _, answer in ask_every_node(fast_dtype, seconds=ANSWER_SECONDS)]
    found = [answer for answer in answers if isinstance(answer, FastDtype)]
    if not found:
        raise UserError(f"dtype: auto asks the cluster's nodes what they compute fast, but none says it: {answers}")
    deciding = [each for each in found if each.on_gpu] or found
    return next((each for each in deciding if each.dtype == "float32"), deciding[0])
