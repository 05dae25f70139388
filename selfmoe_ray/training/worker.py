"""One trainer's work from base model to saved weights: some experts, the router, or both. No Ray."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from selfmoe_ray.base_model import BaseModel, check_hash, load_model, resolve
from selfmoe_ray.config import OptimizerConfig, RunConfig
from selfmoe_ray.mixture.checkpoint import load_expert, load_router, save_expert, save_router
from selfmoe_ray.mixture.gate import Gate
from selfmoe_ray.mixture.model import MixtureModel, attach
from selfmoe_ray.mixture.parameters import count_parameters
from selfmoe_ray.mixture.spec import MixtureSpec
from selfmoe_ray.run.run_dir import RunDir
from selfmoe_ray.training.dataset import TokenizedRow
from selfmoe_ray.training.deepspeed_engine import import_deepspeed
from selfmoe_ray.training.label_fit import fit_to_labels
from selfmoe_ray.training.loop import (
    GateOf,
    Learner,
    LoopSettings,
    StepReport,
    TrainingLoop,
    domain_gate,
)
from selfmoe_ray.training.schedule import make_schedule

ROUTER_LEARNER = "router"
JOINT_LEARNER = "joint"
FITTED = "fitted"
Notify = Callable[..., None]


@dataclass(frozen=True)
class TrainerJob:
    """What one trainer does.

    trainer: the name of its resumable state. experts: those that it trains, by their domains, or in the
    router's job all of the mixture, in its order. rows: each domain's tokenized rows.
    """

    kind: Literal["experts", "router", "joint"]
    trainer: str
    config: RunConfig
    base: BaseModel
    run_dir: RunDir
    experts: tuple[str, ...]
    rows: dict[str, list[TokenizedRow]]
    pad_token_id: int


def run_trainer(
    job: TrainerJob,
    device: str,
    resume_from: Path | None,
    notify: Notify,
    on_checkpoint: Callable[[TrainingLoop], None],
) -> None:
    """Train from the start or from a checkpoint folder and write the results; every worker calls this.

    notify(message=...) or (step=..., ...) tells of progress, from rank 0 only.
    """
    model = _load_mixture(job, device)
    shares = str(count_parameters(model))
    if job.kind == "router":
        _start_router(job, model, notify)
    learners, gate_of = {"experts": _experts, "router": _router, "joint": _joint}[job.kind](job, model)
    loop = TrainingLoop(model, learners, gate_of, job.pad_token_id, loop_settings(job.config))
    is_first = loop.rank == 0
    if resume_from is not None:
        loop.load(resume_from)
        if is_first:
            notify(message=f"continues after step {loop.step} of {loop.steps}")

    def on_step(report: StepReport) -> None:
        if is_first:
            notify(**_progress(report))

    loop.run(on_step, on_checkpoint)
    trained = [parameter for learner in learners for parameter in learner.parameters]
    zero_3 = loop.settings.zero_stage == 3
    with import_deepspeed().zero.GatheredParameters(trained, enabled=zero_3):
        loop.check_weights()
        if is_first:
            if job.kind != "router":
                _save_experts(job, model, loop)
            if job.kind != "experts":
                _save_router(job, model, loop)
                notify(message=shares)


def loop_settings(config: RunConfig) -> LoopSettings:
    """The part of the resources that the loop needs."""
    resources = config.resources.training
    return LoopSettings(
        resources.zero_stage,
        resources.micro_batch_size,
        resources.gradient_checkpointing,
        resources.checkpoint_every_steps,
    )


def _load_mixture(job: TrainerJob, device: str) -> MixtureModel:
    config = job.config
    found = job.base
    if not Path(found.path).is_dir():
        # Another node than the driver's, with a cache of its own.
        found = resolve(job.base.value, config.trust_remote_code)
        check_hash(job.base.value, job.base.content_hash, found, job.base.revision)
    fits_first = job.kind == "router" and config.training.router.init == "labels"
    # ZeRO-3 takes the base to the device in shares, as a device may not hold the whole.
    place = "cpu" if config.resources.training.zero_stage == 3 and not fits_first else device
    base = load_model(found.path, config.training.dtype, place, config.trust_remote_code)
    spec = MixtureSpec.uniform(
        list(job.experts), config.mixture, job.base.value, job.base.content_hash, job.base.revision
    )
    return attach(base, spec, config.seed)


def _experts(job: TrainerJob, model: MixtureModel) -> tuple[list[Learner], GateOf]:
    optimizer = job.config.training.experts
    learners = []
    for index, domain in enumerate(job.experts):
        rows = job.rows[domain]
        schedule = make_schedule(len(rows), optimizer, job.config.seed, domain)
        parameters = model.expert_parameters(index)
        learners.append(Learner(domain, rows, schedule, parameters, optimizer.weight_decay))
    return learners, domain_gate(job.experts)


def _router(job: TrainerJob, model: MixtureModel) -> tuple[list[Learner], GateOf]:
    return _all_rows(job, model, ROUTER_LEARNER, job.config.training.router, model.router_parameters())


def _joint(job: TrainerJob, model: MixtureModel) -> tuple[list[Learner], GateOf]:
    experts = [parameter for index in range(len(job.experts)) for parameter in model.expert_parameters(index)]
    parameters = [*experts, *model.router_parameters()]
    return _all_rows(job, model, JOINT_LEARNER, job.config.training.experts, parameters)


def _all_rows(
    job: TrainerJob, model: MixtureModel, name: str, optimizer: OptimizerConfig, parameters: list[torch.nn.Parameter]
) -> tuple[list[Learner], GateOf]:
    """One learner on the rows of all domains, gated by the router."""
    rows = [row for of_domain in job.rows.values() for row in of_domain]
    schedule = make_schedule(len(rows), optimizer, job.config.seed, name)
    gate = Gate.router(model.spec.num_experts_per_tok)
    return [Learner(name, rows, schedule, parameters, optimizer.weight_decay)], lambda _: gate


def _start_router(job: TrainerJob, model: MixtureModel, notify: Notify) -> None:
    """Load the experts; fit the router once for all workers, and keep the fit for restarts and the report."""
    storage = job.run_dir.storage
    for index, domain in enumerate(job.experts):
        with storage.local_folder_to_read(job.run_dir.expert(domain)) as folder:
            load_expert(model, index, folder)
    if job.config.training.router.init == "random":
        return
    fitted = _fitted_folder(job)
    if torch.distributed.get_rank() == 0 and not storage.exists(fitted):
        config = job.config
        rows = [row for domain in job.experts for row in job.rows[domain]]
        report = fit_to_labels(model, rows, config.training.router.fit_tokens, job.pad_token_id, config.seed)
        accuracy = (report.held_out_accuracy or report.train_accuracy)[-1]
        notify(message="fitted to the domain labels", tokens=report.train_tokens, accuracy=accuracy)
        with storage.local_folder_to_write(fitted) as folder:
            save_router(model, folder)
            (folder / "fit.json").write_text(json.dumps(asdict(report), indent=2, allow_nan=False) + "\n")
    torch.distributed.barrier()
    with storage.local_folder_to_read(fitted) as folder:
        load_router(model, folder)


def _fitted_folder(job: TrainerJob) -> str:
    return f"{job.run_dir.checkpoints(job.trainer)}/{FITTED}"


def _progress(report: StepReport) -> dict[str, Any]:
    return {
        "step": f"{report.step}/{report.steps}",
        "loss": {name: round(loss, 4) for name, loss in report.losses.items()},
        "tokens_per_second": round(report.tokens_per_second, 1),
        "seconds_left": round(report.seconds_left),
    }


def _save_experts(job: TrainerJob, model: MixtureModel, loop: TrainingLoop) -> None:
    for index, domain in enumerate(job.experts):
        with job.run_dir.storage.local_folder_to_write(job.run_dir.expert(domain)) as folder:
            save_expert(model, index, folder)
            _write_metrics(folder, loop, loop.learners[index if job.kind == "experts" else 0])


def _save_router(job: TrainerJob, model: MixtureModel, loop: TrainingLoop) -> None:
    storage = job.run_dir.storage
    with storage.local_folder_to_write(job.run_dir.ROUTER) as folder:
        save_router(model, folder)
        _write_metrics(folder, loop, loop.learners[0])
        if storage.exists(_fitted_folder(job)):
            with storage.local_folder_to_read(_fitted_folder(job)) as fitted:
                shutil.copytree(fitted, folder / FITTED)


def _write_metrics(folder: Path, loop: TrainingLoop, learner: Learner) -> None:
    """metrics.jsonl, one line an optimizer step; loss: mean NLL of the step's response tokens, in nats."""
    with (folder / "metrics.jsonl").open("w") as file:
        seen = 0
        for step in range(learner.schedule.steps):
            seen += len(learner.schedule.batches[step])
            line = {
                "step": step + 1,
                "epoch": round(seen / len(learner.rows), 4),
                "loss": loop.history[step].losses[learner.name],
                "learning_rate": learner.schedule.learning_rates[step],
            }
            file.write(json.dumps(line, allow_nan=False) + "\n")
