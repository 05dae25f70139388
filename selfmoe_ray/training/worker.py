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
from selfmoe_ray.training.label_fit import fit_to_labels
from selfmoe_ray.training.loop import (
    GateOf,
    Learner,
    LoopSettings,
    StepReport,
    TrainingLoop,
    domain_gate,
    import_deepspeed,
)
from selfmoe_ray.training.schedule import make_schedule

ROUTER_LEARNER = "router"
JOINT_LEARNER = "joint"
FITTED = "fitted"
Notify = Callable[..., None]


@dataclass(frozen=True)
class Phase:
    """What one trainer does.

    trainer: the name of its resumable state. experts: those that it trains, by their domains, or in the
    router's phase all of the mixture, in its order. rows: each domain's tokenized rows.
    """

    kind: Literal["experts", "router", "joint"]
    trainer: str
    config: RunConfig
    base: BaseModel
    run_dir: RunDir
    experts: tuple[str, ...]
    rows: dict[str, list[TokenizedRow]]
    pad_token_id: int


def run_phase(
    phase: Phase,
    device: str,
    resume_from: Path | None,
    notify: Notify,
    on_checkpoint: Callable[[TrainingLoop], None],
) -> None:
    """Train from the start or from a checkpoint folder and write the results; every worker calls this.

    notify(message=...) or (step=..., ...) tells of progress, from rank 0 only.
    """
    model = _load_mixture(phase, device)
    shares = str(count_parameters(model))
    if phase.kind == "router":
        _start_router(phase, model, notify)
    learners, gate_of = {"experts": _experts, "router": _router, "joint": _joint}[phase.kind](phase, model)
    loop = TrainingLoop(model, learners, gate_of, phase.pad_token_id, loop_settings(phase.config))
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
        if is_first:
            if phase.kind != "router":
                _save_experts(phase, model, loop)
            if phase.kind != "experts":
                _save_router(phase, model, loop)
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


def _load_mixture(phase: Phase, device: str) -> MixtureModel:
    config = phase.config
    found = phase.base
    if not Path(found.path).is_dir():
        # Another node than the driver's, with a cache of its own.
        found = resolve(phase.base.value, config.trust_remote_code)
        check_hash(phase.base.value, phase.base.content_hash, found)
    fits_first = phase.kind == "router" and config.training.router.init == "labels"
    # ZeRO-3 takes the base to the device in shares, as a device may not hold the whole.
    place = "cpu" if config.resources.training.zero_stage == 3 and not fits_first else device
    base = load_model(found.path, config.training.dtype, place, config.trust_remote_code)
    spec = MixtureSpec.uniform(list(phase.experts), config.mixture, phase.base.value, phase.base.content_hash)
    return attach(base, spec, config.seed)


def _experts(phase: Phase, model: MixtureModel) -> tuple[list[Learner], GateOf]:
    optimizer = phase.config.training.experts
    learners = []
    for index, domain in enumerate(phase.experts):
        rows = phase.rows[domain]
        schedule = make_schedule(len(rows), optimizer, phase.config.seed, domain)
        parameters = model.expert_parameters(index)
        learners.append(Learner(domain, rows, schedule, parameters, optimizer.weight_decay))
    return learners, domain_gate(phase.experts)


def _router(phase: Phase, model: MixtureModel) -> tuple[list[Learner], GateOf]:
    return _all_rows(phase, model, ROUTER_LEARNER, phase.config.training.router, model.router_parameters())


def _joint(phase: Phase, model: MixtureModel) -> tuple[list[Learner], GateOf]:
    experts = [parameter for index in range(len(phase.experts)) for parameter in model.expert_parameters(index)]
    parameters = [*experts, *model.router_parameters()]
    return _all_rows(phase, model, JOINT_LEARNER, phase.config.training.experts, parameters)


def _all_rows(
    phase: Phase, model: MixtureModel, name: str, optimizer: OptimizerConfig, parameters: list[torch.nn.Parameter]
) -> tuple[list[Learner], GateOf]:
    """One learner on the rows of all domains, gated by the router."""
    rows = [row for of_domain in phase.rows.values() for row in of_domain]
    schedule = make_schedule(len(rows), optimizer, phase.config.seed, name)
    gate = Gate.router(model.spec.num_experts_per_tok)
    return [Learner(name, rows, schedule, parameters, optimizer.weight_decay)], lambda _: gate


def _start_router(phase: Phase, model: MixtureModel, notify: Notify) -> None:
    """Load the experts; fit the router once for all workers, and keep the fit for restarts and the report."""
    storage = phase.run_dir.storage
    for index, domain in enumerate(phase.experts):
        with storage.local_folder_to_read(phase.run_dir.expert(domain)) as folder:
            load_expert(model, index, folder)
    if phase.config.training.router.init == "random":
        return
    fitted = _fitted_folder(phase)
    if torch.distributed.get_rank() == 0 and not storage.exists(fitted):
        config = phase.config
        rows = [row for domain in phase.experts for row in phase.rows[domain]]
        report = fit_to_labels(model, rows, config.training.router.fit_tokens, phase.pad_token_id, config.seed)
        accuracy = (report.held_out_accuracy or report.train_accuracy)[-1]
        notify(message="fitted to the domain labels", tokens=report.train_tokens, accuracy=accuracy)
        with storage.local_folder_to_write(fitted) as folder:
            save_router(model, folder)
            (folder / "fit.json").write_text(json.dumps(asdict(report), indent=2) + "\n")
    torch.distributed.barrier()
    with storage.local_folder_to_read(fitted) as folder:
        load_router(model, folder)


def _fitted_folder(phase: Phase) -> str:
    return f"{phase.run_dir.checkpoints(phase.trainer)}/{FITTED}"


def _progress(report: StepReport) -> dict[str, Any]:
    return {
        "step": f"{report.step}/{report.steps}",
        "loss": {name: round(loss, 4) for name, loss in report.losses.items()},
        "tokens_per_second": round(report.tokens_per_second, 1),
        "seconds_left": round(report.seconds_left),
    }


def _save_experts(phase: Phase, model: MixtureModel, loop: TrainingLoop) -> None:
    for index, domain in enumerate(phase.experts):
        with phase.run_dir.storage.local_folder_to_write(phase.run_dir.expert(domain)) as folder:
            save_expert(model, index, folder)
            _write_metrics(folder, loop, loop.learners[index if phase.kind == "experts" else 0])


def _save_router(phase: Phase, model: MixtureModel, loop: TrainingLoop) -> None:
    storage = phase.run_dir.storage
    with storage.local_folder_to_write(phase.run_dir.ROUTER) as folder:
        save_router(model, folder)
        _write_metrics(folder, loop, loop.learners[0])
        if storage.exists(_fitted_folder(phase)):
            with storage.local_folder_to_read(_fitted_folder(phase)) as fitted:
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
            file.write(json.dumps(line) + "\n")
