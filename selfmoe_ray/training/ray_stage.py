"""Training on Ray: which experts are left, on which rows, by how many trainers; then the router."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from selfmoe_ray.base_model import BaseModel, load_tokenizer
from selfmoe_ray.config import RunConfig
from selfmoe_ray.domains.rows import training_examples
from selfmoe_ray.machines.ray_nodes import read_cluster
from selfmoe_ray.run.events import Emit
from selfmoe_ray.run.run_dir import RunDir
from selfmoe_ray.run.stages import Made, Making, Product
from selfmoe_ray.training.dataset import TokenizedRows, tokenize_all
from selfmoe_ray.training.ray_trainer import fit_all
from selfmoe_ray.training.trainers import TrainerPlan, WorkerDevices, count_devices, plan_trainers, worker_devices

if TYPE_CHECKING:
    from selfmoe_ray.training.worker import TrainerJob


def train_experts(
    config: RunConfig, domains: Sequence[str], todo: Sequence[Product], base: BaseModel, run_dir: RunDir, emit: Emit
) -> Making:
    """Train the experts of those domains that are to do, and write `experts/<domain>/`.

    Needs a running Ray. Raises UserError where a domain has no rows, or where the cluster cannot hold a trainer.
    """
    products = {product.folder: product for product in todo}
    names = [name for name in domains if run_dir.expert(name) in products]
    work = _Work("experts", config, base, run_dir, emit)
    plans, devices = _plan(config, len(names), config.resources.training.experts_per_trainer)
    rows = work.tokenize(names)
    shares: dict[str, float] = {}
    jobs = []
    for plan in plans:
        mine = [names[index] for index in plan.experts]
        shares |= dict.fromkeys(mine, plan.workers / len(mine))
        jobs.append(work.job([products[run_dir.expert(name)] for name in mine], mine, mine, rows, plan.workers))
        emit("experts", message=f"one trainer for {', '.join(mine)}", workers=plan.workers, cpus=devices.cpus,
             gpus=devices.gpus, zero_stage=config.resources.training.zero_stage)  # fmt: skip
    fit_all(jobs, [plan.workers for plan in plans], devices, emit)
    for name, share in shares.items():
        yield Made(run_dir.expert(name), _counts(rows[name], config.training.experts.epochs), share)
    _forget(jobs)


def train_router(
    config: RunConfig, domains: Sequence[str], todo: Sequence[Product], base: BaseModel, run_dir: RunDir, emit: Emit
) -> Making:
    """Train the router on all experts' rows, the experts frozen, and write `router/`.

    Needs a running Ray and finished experts. Raises UserError as `train_experts` does.
    """
    work = _Work("router", config, base, run_dir, emit)
    return work.train_on_all(domains, domains, todo, config.training.router.epochs)


def train_jointly(
    config: RunConfig,
    domains: Sequence[str],
    experts: Sequence[str],
    products: Sequence[Product],
    base: BaseModel,
    run_dir: RunDir,
    emit: Emit,
) -> Making:
    """Train experts and their router together on the rows of all domains, by the language-model loss alone.

    One expert is gated by 1 whatever its router: that is instance merging. Lengths and rates are those of
    the experts' training. Writes `experts/<name>/` and `router/`. Raises UserError as `train_experts` does.
    """
    work = _Work("joint", config, base, run_dir, emit)
    return work.train_on_all(domains, experts, products, config.training.experts.epochs)


@dataclass(frozen=True)
class _Work:
    """What the steps of one stage of training share."""

    kind: Literal["experts", "router", "joint"]
    config: RunConfig
    base: BaseModel
    run_dir: RunDir
    emit: Emit

    def train_on_all(
        self, domains: Sequence[str], experts: Sequence[str], products: Sequence[Product], epochs: float
    ) -> Making:
        """Train by one trainer on the rows of all domains; it makes all the products, of the same settings."""
        [plan], devices = _plan(self.config, 1, 1)
        rows = self.tokenize(domains)
        job = self.job(products[:1], experts, domains, rows, plan.workers)
        fit_all([job], [plan.workers], devices, self.emit)
        parts = [_counts(of_domain, epochs) for of_domain in rows.values()]
        counts = {key: sum(part[key] for part in parts) for key in parts[0]}
        for product in products:
            yield Made(product.folder, counts, plan.workers / len(products))
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
        self,
        products: Sequence[Product],
        experts: Sequence[str],
        domains: Sequence[str],
        rows: dict[str, TokenizedRows],
        workers: int,
    ) -> TrainerJob:
        """One trainer's work on the domains' rows; products: what it leads to."""
        from selfmoe_ray.training.worker import TrainerJob

        # State can be resumed only by the same work in the same layout, so its name stands for both.
        made_with = [product.made_with(self.run_dir) for product in products]
        layout = [list(experts), workers, self.config.resources.training.zero_stage]
        digest = hashlib.sha256(json.dumps([made_with, layout], sort_keys=True).encode()).hexdigest()[:12]
        pad = load_tokenizer(self.base.path, self.config.trust_remote_code).pad_token_id
        name, chosen = f"{self.kind}-{digest}", {domain: rows[domain].rows for domain in domains}
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


def _forget(jobs: Sequence[TrainerJob]) -> None:
    """Resumable state of finished work is of no more use."""
    for job in jobs:
        job.run_dir.storage.delete(job.run_dir.checkpoints(job.trainer))
