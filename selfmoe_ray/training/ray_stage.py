"""Training on Ray: which experts are left, on which rows, by how many trainers; then the router."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from selfmoe_ray.base_model import BaseModel, load_tokenizer
from selfmoe_ray.config import RunConfig
from selfmoe_ray.domains.domain import Domain
from selfmoe_ray.machines.ray_nodes import read_cluster
from selfmoe_ray.run.events import Emit
from selfmoe_ray.run.run_dir import RunDir
from selfmoe_ray.training.dataset import TokenizedRows, tokenize_all
from selfmoe_ray.training.ray_trainer import fit_all
from selfmoe_ray.training.stage import Expected, expert_manifest, joint_manifest, router_manifest, training_examples
from selfmoe_ray.training.trainers import TrainerPlan, WorkerDevices, count_devices, plan_trainers, worker_devices

if TYPE_CHECKING:
    from selfmoe_ray.training.worker import TrainerJob


def train_experts(config: RunConfig, domains: Sequence[Domain], base: BaseModel, run_dir: RunDir, emit: Emit) -> None:
    """Train the experts that are not finished, and write `experts/<domain>/`, manifests last.

    Needs a running Ray. Raises UserError where a finished expert was made with other settings, where
    a domain has no rows, or where the cluster cannot hold a trainer.
    """
    start = time.monotonic()
    stage = _Stage("experts", config, base, run_dir, emit)
    expected = {domain.name: expert_manifest(config, domain.name, base, run_dir) for domain in domains}
    todo = [name for name in expected if not run_dir.is_done(run_dir.expert(name), *expected[name], redo="experts")]
    if not todo:
        return
    plans, devices = _plan(config, len(todo), config.resources.training.experts_per_trainer)
    rows = stage.tokenize(todo)
    jobs = []
    for plan in plans:
        names = [todo[index] for index in plan.experts]
        mine = {name: rows[name] for name in names}
        jobs.append(stage.job([expected[name] for name in names], names, mine, plan.workers))
        emit("experts", message=f"one trainer for {', '.join(names)}", workers=plan.workers, cpus=devices.cpus,
             gpus=devices.gpus, zero_stage=config.resources.training.zero_stage)  # fmt: skip
    fit_all(jobs, [plan.workers for plan in plans], devices, emit)
    seconds = time.monotonic() - start
    for plan in plans:
        for name in (todo[index] for index in plan.experts):
            counts = _counts(rows[name], config.training.experts.epochs)
            share = plan.workers / len(plan.experts)
            run_dir.write_manifest(run_dir.expert(name), *expected[name], counts, seconds, share)
    _forget(jobs)


def train_router(config: RunConfig, domains: Sequence[Domain], base: BaseModel, run_dir: RunDir, emit: Emit) -> None:
    """Train the router on all experts' rows, the experts frozen, and write `router/`, its manifest last.

    Needs a running Ray and finished experts. Raises UserError as `train_experts` does.
    """
    names = [domain.name for domain in domains]
    work = _OnAllRows(router_manifest(config, names, base, run_dir), names, config.training.router.epochs)
    _Stage("router", config, base, run_dir, emit).train_on_all(names, work, [run_dir.ROUTER])


def train_jointly(
    config: RunConfig,
    domains: Sequence[Domain],
    experts: Sequence[str],
    base: BaseModel,
    run_dir: RunDir,
    emit: Emit,
) -> None:
    """Train experts and their router together on the rows of all domains, by the language-model loss alone.

    One expert is gated by 1 whatever its router: that is instance merging. Lengths and rates are those of
    the experts' training. Writes `experts/<name>/` and `router/`, manifests last. Raises UserError as
    `train_experts` does.
    """
    names = [domain.name for domain in domains]
    work = _OnAllRows(joint_manifest(config, names, experts, base, run_dir), experts, config.training.experts.epochs)
    folders = [*map(run_dir.expert, experts), run_dir.ROUTER]
    _Stage("joint", config, base, run_dir, emit).train_on_all(names, work, folders)


@dataclass(frozen=True)
class _OnAllRows:
    """Work of one trainer on the rows of all domains."""

    expected: Expected
    experts: Sequence[str]
    epochs: float


@dataclass(frozen=True)
class _Stage:
    """What the steps of one stage of training share."""

    kind: Literal["experts", "router", "joint"]
    config: RunConfig
    base: BaseModel
    run_dir: RunDir
    emit: Emit

    def train_on_all(self, domains: Sequence[str], work: _OnAllRows, folders: Sequence[str]) -> None:
        """Do the work, unless it is done, and write the folders' manifests; the router is the last of them."""
        start = time.monotonic()
        if self.run_dir.is_done(self.run_dir.ROUTER, *work.expected, redo="router"):
            return
        [plan], devices = _plan(self.config, 1, 1)
        rows = self.tokenize(domains)
        job = self.job([work.expected], work.experts, rows, plan.workers)
        fit_all([job], [plan.workers], devices, self.emit)
        counts, seconds = _sum_counts(rows, work.epochs), time.monotonic() - start
        for folder in folders:
            self.run_dir.write_manifest(folder, *work.expected, counts, seconds, plan.workers / len(folders))
        _forget([job])

    def tokenize(self, names: Sequence[str]) -> dict[str, TokenizedRows]:
        """The domains' rows to train on."""
        tokenizer = load_tokenizer(self.base.path, self.config.trust_remote_code)
        rows = {}
        for name in names:
            examples = training_examples(self.config, name, self.run_dir)
            rows[name] = tokenize_all(examples, tokenizer, self.config.training.max_length)
            self.emit(self.kind, message="rows to train on", domain=name, **_counts(rows[name], 1))
        return rows

    def job(
        self, expected: Sequence[Expected], experts: Sequence[str], rows: dict[str, TokenizedRows], workers: int
    ) -> TrainerJob:
        """One trainer's work; expected: of the manifests that it leads to."""
        from selfmoe_ray.training.worker import TrainerJob

        # State can be resumed only by the same work in the same layout, so its name stands for both.
        layout = [list(experts), workers, self.config.resources.training.zero_stage]
        digest = hashlib.sha256(json.dumps([expected, layout], sort_keys=True).encode()).hexdigest()[:12]
        pad = load_tokenizer(self.base.path, self.config.trust_remote_code).pad_token_id
        name, chosen = f"{self.kind}-{digest}", {domain: of_domain.rows for domain, of_domain in rows.items()}
        return TrainerJob(self.kind, name, self.config, self.base, self.run_dir, tuple(experts), chosen, pad)


def _plan(config: RunConfig, learners: int, each: Literal["auto"] | int) -> tuple[list[TrainerPlan], WorkerDevices]:
    """How many trainers and workers train so many learners on this cluster, and what each worker has."""
    resources, cluster = config.resources.training, read_cluster()
    plans = plan_trainers(learners, each, resources.workers_per_trainer, count_devices(resources, cluster))
    return plans, worker_devices(resources, plans, cluster)


def _counts(rows: TokenizedRows, epochs: float) -> dict[str, Any]:
    """Rows, and the tokens read in all epochs."""
    tokens = sum(len(row.input_ids) for row in rows.rows)
    return {
        "rows": len(rows.rows),
        "truncated": rows.truncated,
        "dropped": rows.dropped,
        "tokens": round(tokens * epochs),
    }


def _sum_counts(rows: dict[str, TokenizedRows], epochs: float) -> dict[str, Any]:
    parts = [_counts(of_domain, epochs) for of_domain in rows.values()]
    return {key: sum(part[key] for part in parts) for key in parts[0]}


def _forget(jobs: Sequence[TrainerJob]) -> None:
    """Resumable state of finished work is of no more use."""
    for job in jobs:
        job.run_dir.storage.delete(job.run_dir.checkpoints(job.trainer))
