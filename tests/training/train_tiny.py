"""Trains experts of a tiny mixture; run as a script it is one of several workers."""

import os
import random
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from selfmoe_ray.config import MixtureConfig, OptimizerConfig
from selfmoe_ray.mixture.gate import Gate
from selfmoe_ray.mixture.model import MixtureModel, attach
from selfmoe_ray.mixture.spec import MixtureSpec
from selfmoe_ray.training.dataset import IGNORED, TokenizedRow
from selfmoe_ray.training.deepspeed_engine import import_deepspeed
from selfmoe_ray.training.loop import Learner, LoopSettings, TrainingLoop, domain_gate
from selfmoe_ray.training.schedule import make_schedule

ROWS = {"ant": 11, "bee": 5, "cat": 2}
OPTIMIZER = OptimizerConfig(learning_rate=3e-3, epochs=2, batch_size=4)
PAD = 2


def make_rows(domain: str) -> list[TokenizedRow]:
    """Random rows of unequal lengths."""
    draw = random.Random(domain)
    rows = []
    for number in range(ROWS[domain]):
        ids = [draw.randint(4, 300) for _ in range(draw.randint(8, 24))]
        prompt = draw.randint(1, 6)
        rows.append(TokenizedRow(f"{domain}/{number}", domain, ids, [IGNORED] * prompt + ids[prompt:]))
    return rows


def make_mixture(base: Path, domains: list[str], dtype: str = "float32") -> MixtureModel:
    """Fresh experts and router on a tiny base."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype)).eval()
    return attach(model, MixtureSpec.uniform(domains, MixtureConfig(rank=4)))


def expert_loop(model: MixtureModel, settings: LoopSettings) -> TrainingLoop:
    """A loop over all experts of the mixture."""
    domains = list(model.spec.experts)
    learners = []
    for index, domain in enumerate(domains):
        rows = make_rows(domain)
        schedule = make_schedule(len(rows), OPTIMIZER, 0, domain)
        learners.append(Learner(domain, rows, schedule, model.expert_parameters(index), 0.01))
    return TrainingLoop(model, learners, domain_gate(domains), PAD, settings)


def router_loop(model: MixtureModel, settings: LoopSettings) -> TrainingLoop:
    """A loop over the router alone."""
    rows = [row for domain in model.spec.experts for row in make_rows(domain)]
    learner = Learner("router", rows, make_schedule(len(rows), OPTIMIZER, 0, "router"), model.router_parameters())
    return TrainingLoop(model, [learner], lambda _: Gate.router(1), PAD, settings)


def weights(model: MixtureModel, zero_stage: int = 0) -> dict[str, torch.Tensor]:
    """Every parameter of the mixture but the base's."""
    found = {
        f"{domain}/{number}": parameter
        for index, domain in enumerate(model.spec.experts)
        for number, parameter in enumerate(model.expert_parameters(index))
    }
    found.update({f"router/{number}": theta for number, theta in enumerate(model.router_parameters())})
    with import_deepspeed().zero.GatheredParameters(list(found.values()), enabled=zero_stage == 3):
        return {name: parameter.detach().clone() for name, parameter in found.items()}


def main(base: str, store: str, out: str, rank: int, workers: int) -> None:
    """Train with each ZeRO stage in turn; rank 0 saves `<out>/zero<stage>.pt`."""
    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=workers)
    for stage in (0, 1, 2, 3):
        model = make_mixture(Path(base), list(ROWS))
        expert_loop(model, LoopSettings(zero_stage=stage, micro_batch_size=3)).run(
            lambda report: None, lambda loop: None
        )
        trained = weights(model, stage)
        if rank == 0:
            torch.save(trained, Path(out) / f"zero{stage}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:4], rank=int(sys.argv[4]), workers=int(sys.argv[5]))
