"""A made run directory with everything that a finished run of two domains leaves behind."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from selfmoe_ray.config import RunConfig, parse_config
from selfmoe_ray.run.records import Example, Reject
from selfmoe_ray.run.run_dir import RunDir

DOMAINS = ["math", "coding"]
HOSTILE = "<script>alert('x')</script> & <b>bold</b>"


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return parse_config({
        "root": str(tmp_path),
        "run_name": "made",
        "domains": DOMAINS,
        "generation": {"examples_per_domain": 6},
    })  # fmt: skip


@pytest.fixture
def run_dir(config: RunConfig) -> RunDir:
    return RunDir(config.root, config.run_name)


@pytest.fixture
def finished(run_dir: RunDir) -> RunDir:
    """The run with all of its stages."""
    for write in (write_data, write_training, write_measure):
        write(run_dir)
    run_dir.storage.write_json(run_dir.PROVENANCE, {"version": "0.1", "packages": {"torch": "2.13"}})
    return run_dir


def write_data(run_dir: RunDir) -> None:
    for domain in DOMAINS:
        examples = [
            Example(f"{domain}/000/0000/{row:04d}", domain, f"Task {row} {HOSTILE}", "", f"Answer {row}")
            for row in range(6)
        ]
        reject = Reject(f"{domain}/000/0000/0009", domain, "brainstorm", "malformed", f"no fields {HOSTILE}")
        run_dir.write_examples(domain, examples, [reject, reject])
        counts = {
            "examples": len(examples),
            "waves": 2,
            "brainstorm": phase_counts(12, {"malformed": 3, "near_duplicate": 1}),
            "respond": phase_counts(8, {"truncated": 2}),
        }
        run_dir.write_manifest(run_dir.data(domain), {}, {}, counts, seconds=10.0)


def phase_counts(completions: int, rejected: dict[str, int]) -> dict[str, Any]:
    valid = completions - sum(rejected.values())
    tokens = {"prompt_tokens": 900, "completion_tokens": 50 * completions}
    return {
        "completions": completions,
        "valid": valid,
        **tokens,
        "rejected": rejected,
        "yield": valid / completions,
    }


def write_training(run_dir: RunDir) -> None:
    for shift, domain in enumerate(DOMAINS):
        write_metrics(run_dir, run_dir.expert(domain), 30, 1.6 + 0.2 * shift)
    write_metrics(run_dir, run_dir.ROUTER, 10, 1.1)
    accuracies = [0.6 + 0.012 * layer for layer in range(30)]
    fit = {"train_accuracy": accuracies, "held_out_accuracy": accuracies[::-1]}
    run_dir.storage.write_json("router/fitted/fit.json", fit)
    run_dir.write_manifest(run_dir.MIXSE, {}, {}, {}, seconds=0.5)


def write_metrics(run_dir: RunDir, folder: str, steps: int, start: float) -> None:
    rows = [
        {
            "step": step,
            "epoch": 3 * step / steps,
            "loss": start * math.exp(-step / 20) + 0.6,
            "learning_rate": 3e-4,
        }
        for step in range(1, steps + 1)
    ]
    run_dir.storage.write_jsonl(f"{folder}/metrics.jsonl", rows)
    run_dir.write_manifest(folder, {}, {}, {"tokens": 5000}, seconds=20.0)


def write_measure(run_dir: RunDir, collapse: dict[str, Any] | None = None) -> None:
    nll = {"base": 1.7, "expert-math": 1.5, "expert-coding": 1.45, "uniform": 1.2, "random": 1.25}
    systems = {name: system_counts(value, 1.03 - value) for name, value in nll.items()}
    systems |= {"mixse": system_counts(1.03, 0.0), "oracle": system_counts(1.02, 0.01)}
    row_set = {"rows": dict.fromkeys(DOMAINS, 5), "tokens": dict.fromkeys(DOMAINS, 500), "systems": systems}
    measured = {"domains": DOMAINS, "row_sets": {"held_out": row_set, "seeds": row_set}}
    routing = {
        "row_set": "held_out",
        "experts": DOMAINS,
        "domains": {"math": routing_counts(0.88), "coding": routing_counts(0.07)},
        "collapse": collapse,
    }
    words = f"To add 3 and 4, write {HOSTILE}\n    def add(a, b):\n        return a + b\n".split(" ")
    tokens = [
        {"text": f"{word} ", "gate": [0.7, 0.1] if index % 5 else [0.0, 0.6], "expert": 0 if index % 5 else 1}
        for index, word in enumerate(words)
    ]
    answers = [
        {
            "domain": domain,
            "row": f"{domain}/seed/3",
            "instruction": f"Add 3 and 4. {HOSTILE}",
            "input": "",
            "answer": "".join(token["text"] for token in tokens),
            "finished": True,
            "tokens": tokens,
        }
        for domain in DOMAINS
    ]
    passages = [{"domain": domain, "row": f"{domain}/seed/4", "tokens": tokens} for domain in DOMAINS]
    run_dir.storage.write_json("measure/nll.json", measured)
    run_dir.storage.write_json("measure/routing.json", routing)
    run_dir.storage.write_json("measure/answer.json", {"answers": answers, "passages": passages})
    parameters = {"base": 134_515_008, "experts": dict.fromkeys(DOMAINS, 2_442_240), "router": 69_120}
    run_dir.write_manifest(run_dir.MEASURE, {}, {}, {"parameters": parameters, "tokens": 4000}, seconds=30.0)


def system_counts(nll: float, difference: float) -> dict[str, Any]:
    estimate = {"difference": difference, "standard_error": 0.02}
    return {
        "nll": {"math": nll - 0.1, "coding": nll + 0.1},
        "mean_nll": nll,
        "mixse_minus": dict.fromkeys(DOMAINS, estimate),
        "mixse_minus_mean": estimate,
    }


def routing_counts(math_share: float) -> dict[str, Any]:
    layers = [[(math_share + layer / 30) / 2, 1 - (math_share + layer / 30) / 2] for layer in range(30)]
    return {
        "tokens": 500,
        "top1_share": [math_share, 1 - math_share],
        "mean_gate": [math_share * 0.8, (1 - math_share) * 0.8],
        "entropy_bits": 0.5,
        "layers": {"top1_share": layers, "mean_gate": layers},
    }


@pytest.fixture
def write_collapsed() -> Callable[[RunDir], None]:
    return lambda run_dir: write_measure(run_dir, {"expert": "math", "share": 0.97})
