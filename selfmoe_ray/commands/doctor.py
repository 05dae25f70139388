"""`selfmoe doctor`: what stands between this installation and a run, and what to do about it."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from dataclasses import asdict

from selfmoe_ray.commands.job import DONE, FAILED
from selfmoe_ray.engine.vllm_plugin.compatibility import TESTED_VLLM
from selfmoe_ray.errors import UserError
from selfmoe_ray.machines.checks import Finding, diagnose_machine


def main(argv: list[str] | None = None) -> int:
    """Print every finding; 1 where a check failed, else 0."""
    parser = argparse.ArgumentParser(
        description="Check this machine and, where RAY_ADDRESS is set, every node of that cluster."
    )
    parser.add_argument("--root", default="runs", help="where runs will be written, a path or URI (%(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON array instead of lines")
    arguments = parser.parse_args(argv)
    findings = []
    for finding in diagnose(arguments.root):
        findings.append(finding)
        if not arguments.json:
            print(line(finding), flush=True)
    if arguments.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    return FAILED if any(finding.status == "failed" for finding in findings) else DONE


def diagnose(root: str) -> Iterator[Finding]:
    """The machine's findings, then the cluster's if RAY_ADDRESS names one."""
    yield from diagnose_machine(root, TESTED_VLLM)
    if "RAY_ADDRESS" not in os.environ:
        yield Finding("cluster", "ok", "RAY_ADDRESS is not set: runs start a Ray of their own here")
        return
    from selfmoe_ray.machines.ray_checks import diagnose_cluster

    try:
        yield from diagnose_cluster(root)
    except UserError as error:
        found, _, remedy = str(error).partition("\n")
        yield Finding("cluster", "failed", found, remedy.strip())


def line(finding: Finding) -> str:
    """A finding for people, its remedy on a line of its own."""
    text = f"{finding.status:8} {finding.check}: {finding.found}"
    return f"{text}\n         -> {finding.remedy}" if finding.remedy else text
