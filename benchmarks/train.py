"""Four experts in one fused trainer against stock PEFT, one expert a run: tokens/s and peak memory.

    python benchmarks/train.py [--base embedded] [--dtype bfloat16] [--steps 4] [--threads N]

Both train the same rows in the same batches with the same AdamW. Speed is compared with four
sequential PEFT runs, memory (PSS summed over processes) with four concurrent ones. Loading is not
timed. Prints one JSON object; ratios above 1 for speed and below 1 for memory favour the fused trainer.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from selfmoe_ray.base_model import load_model, load_tokenizer, resolve
from selfmoe_ray.config import MixtureConfig, OptimizerConfig
from selfmoe_ray.domains.domain import builtin_names, load_domain
from selfmoe_ray.machines.limits import usable_cores
from selfmoe_ray.run.records import Example
from selfmoe_ray.training.dataset import TokenizedRow, tokenize_all
from selfmoe_ray.training.schedule import Schedule, make_schedule, micro_batches, step_rows

MAX_LENGTH = 384
MICRO_BATCH = 8
OPTIMIZER = OptimizerConfig(batch_size=8, epochs=10)


def main() -> None:
    """Run the comparison, or with --worker one side of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(work(arguments)))
        return
    domains = builtin_names()
    fused, fused_memory = measure(arguments, ["fused"])
    sequential = [measure(arguments, [domain])[0][0] for domain in domains]
    _, concurrent_memory = measure(arguments, domains)
    alone = sum(run["tokens"] for run in sequential) / sum(run["seconds"] for run in sequential)
    together = fused[0]["tokens"] / fused[0]["seconds"]
    result = {
        "base": arguments.base,
        "dtype": arguments.dtype,
        "threads": arguments.threads,
        "tokens": fused[0]["tokens"],
        "fused_tokens_per_second": round(together, 1),
        "peft_tokens_per_second": round(alone, 1),
        "speed_ratio": round(together / alone, 3),
        "fused_peak_mib": round(fused_memory / 2**20),
        "peft_concurrent_peak_mib": round(concurrent_memory / 2**20),
        "memory_ratio": round(fused_memory / concurrent_memory, 3),
    }
    print(json.dumps(result, indent=2))


def measure(arguments: argparse.Namespace, workers: list[str]) -> tuple[list[dict[str, Any]], int]:
    """Run workers at the same time; their results, and the peak of their memory together in bytes."""
    options = [f"--{name}={getattr(arguments, name)}" for name in ("base", "dtype", "steps", "threads")]
    running = [
        subprocess.Popen([sys.executable, __file__, *options, f"--worker={worker}"], stdout=subprocess.PIPE, text=True)
        for worker in workers
    ]
    peak = 0
    while any(process.poll() is None for process in running):
        peak = max(peak, sum(tree_memory(process.pid) for process in running))
        time.sleep(0.25)
    if any(process.returncode for process in running):
        raise SystemExit("a worker failed; its error is above")
    return [json.loads(process.stdout.read().splitlines()[-1]) for process in running if process.stdout], peak


def tree_memory(pid: int) -> int:
    """PSS of a process and its children, in bytes."""
    total = 0
    try:
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            total += process.memory_full_info().pss
    except psutil.Error:
        pass
    return total


def read_rows(base: str) -> tuple[dict[str, list[TokenizedRow]], int]:
    """The built-in seeds of every domain, tokenized, and the pad token's id."""
    tokenizer = load_tokenizer(resolve(base).path)
    rows = {}
    for name in builtin_names():
        examples = [
            Example(f"{name}/seed/{number}", name, seed.instruction, seed.input, seed.output)
            for number, seed in enumerate(load_domain(name).seeds)
        ]
        rows[name] = tokenize_all(examples, tokenizer, MAX_LENGTH).rows
    return rows, tokenizer.pad_token_id


def schedule_of(rows: list[TokenizedRow], name: str, steps: int) -> Schedule:
    """The first steps of the expert's schedule; the same on both sides."""
    whole = make_schedule(len(rows), OPTIMIZER, 0, name)
    return Schedule(whole.batches[:steps], whole.learning_rates[:steps])


def work(arguments: argparse.Namespace) -> dict[str, Any]:
    """One side: tokens read and seconds taken by the steps after the first, which warms up."""
    import torch

    torch.set_num_threads(arguments.threads)
    rows, pad = read_rows(arguments.base)
    model = load_model(resolve(arguments.base).path, arguments.dtype)
    if arguments.worker == "fused":
        return train_fused(model, rows, pad, arguments.steps + 1)
    return train_peft(model, rows[arguments.worker], arguments.worker, pad, arguments.steps + 1)


def train_fused(base: Any, rows: dict[str, list[TokenizedRow]], pad: int, steps: int) -> dict[str, Any]:
    """All experts in this project's loop."""
    import torch

    from selfmoe_ray.mixture.model import attach
    from selfmoe_ray.mixture.spec import MixtureSpec
    from selfmoe_ray.training.loop import Learner, LoopSettings, StepReport, TrainingLoop, domain_gate

    os.environ["LOCAL_RANK"] = "0"
    store = Path(tempfile.mkdtemp()) / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    domains = list(rows)
    model = attach(base, MixtureSpec.uniform(domains, MixtureConfig()))
    learners = [
        Learner(name, rows[name], schedule_of(rows[name], name, steps), model.expert_parameters(index))
        for index, name in enumerate(domains)
    ]
    ends: list[tuple[float, int]] = []

    def on_step(report: StepReport) -> None:
        ends.append((time.perf_counter(), report.tokens))

    settings = LoopSettings(zero_stage=2, micro_batch_size=MICRO_BATCH, checkpoint_every_steps=10**9)
    TrainingLoop(model, learners, domain_gate(domains), pad, settings).run(on_step, lambda loop: None)
    return {"tokens": sum(tokens for _, tokens in ends[1:]), "seconds": ends[-1][0] - ends[0][0]}


def train_peft(base: Any, rows: list[TokenizedRow], name: str, pad: int, steps: int) -> dict[str, Any]:
    """One expert with stock PEFT and a plain loop."""
    import torch
    from peft import LoraConfig, get_peft_model

    from selfmoe_ray.training.dataset import collate

    shape = MixtureConfig()
    config = LoraConfig(r=shape.rank, lora_alpha=int(shape.alpha), target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, weight_decay=0.0, fused=True)
    schedule = schedule_of(rows, name, steps)
    lengths = [len(row.input_ids) for row in rows]
    targets = [row.response_tokens for row in rows]
    tokens, started = 0, 0.0
    for step in range(schedule.steps):
        planned = step_rows(step, [schedule], [lengths], [targets])
        for micro_batch in micro_batches(planned, 1, MICRO_BATCH)[0]:
            chosen = [rows[row.row] for row in micro_batch]
            share = sum(row.response_tokens for row in chosen) * micro_batch[0].weight
            (model(**collate(chosen, pad), use_cache=False).loss * share).backward()
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rates[step]
        optimizer.step()
        optimizer.zero_grad()
        if step == 0:
            started = time.perf_counter()
        else:
            tokens += sum(row.length for row in planned)
    return {"tokens": tokens, "seconds": time.perf_counter() - started}


if __name__ == "__main__":
    main()
