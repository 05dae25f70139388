"""Evaluating base, experts and MiXSE through one engine against a run of lm-eval for each: wall-clock seconds.

    python benchmarks/evaluate.py --run runs/demo --data-root DIR [--tasks gsm8k,hellaswag] [--limit 16]

Ours is `jobs/eval.py` from its start to its table, on a copy of the run without evaluations. Theirs are
lm-eval's own commands, one after the other, with its transformers backend: the base, and the base with each
expert as a PEFT adapter; the base once more stands for MiXSE, which that backend cannot load and which costs
more. Both take the same items, examples in prompts and number type. Prints one JSON object; a ratio below 1
says that ours takes less time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from selfmoe_ray.base_model import resolve
from selfmoe_ray.evaluation.benchmarks import select_benchmarks

ROOT = Path(__file__).parents[1]
DTYPE = "bfloat16"


def main() -> None:
    """Run both sides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--tasks", default="gsm8k,hellaswag", help="one to generate, one of log-likelihoods")
    parser.add_argument("--limit", type=int, default=16)
    parser.add_argument("--num-fewshot", type=int, default=2)
    parser.add_argument("--batch-size", default="8", help="of the transformers backend")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run = Path(temporary) / "run"
        ignored = shutil.ignore_patterns("eval", "checkpoints")
        shutil.copytree(arguments.run, run, ignore=ignored)
        ours = timed(our_command(arguments, run), ROOT)
    theirs = [timed(command, arguments.data_root) for command in their_commands(arguments)]
    result = {
        "systems": len(theirs),
        "items_per_task": arguments.limit,
        "one_engine_seconds": round(ours, 1),
        "separate_runs_seconds": [round(seconds, 1) for seconds in theirs],
        "ratio": round(ours / sum(theirs), 3),
    }
    print(json.dumps(result, indent=2))


def our_command(arguments: argparse.Namespace, run: Path) -> list[str]:
    """Base, every expert and MiXSE by `jobs/eval.py`."""
    options = {
        "run": run,
        "systems": "base,experts,mixse",
        "tasks": arguments.tasks,
        "limit": arguments.limit,
        "num-fewshot": arguments.num_fewshot,
        "data-root": arguments.data_root.absolute(),
        "dtype": DTYPE,
    }
    return [sys.executable, "jobs/eval.py", *(f"--{name}={value}" for name, value in options.items())]


def their_commands(arguments: argparse.Namespace) -> list[list[str]]:
    """A command of lm-eval's for each system."""
    config = yaml.safe_load((arguments.run / "run.yaml").read_text())
    base = f"pretrained={resolve(config['base_model']).path},dtype={DTYPE}"
    adapters = [f",peft={folder.absolute()}" for folder in sorted((arguments.run / "experts").iterdir())]
    tasks = ",".join(each.task for each in select_benchmarks(arguments.tasks.split(","), None))
    options = {
        "model": "hf",
        "device": "cpu",
        "tasks": tasks,
        "limit": arguments.limit,
        "num_fewshot": arguments.num_fewshot,
        "batch_size": arguments.batch_size,
    }
    command = [sys.executable, "-m", "lm_eval", "run", *(f"--{name}={value}" for name, value in options.items())]
    return [[*command, f"--model_args={base}{adapter}"] for adapter in ("", *adapters, "")]


def timed(command: list[str], folder: Path) -> float:
    """Seconds that a command takes; its output is shown where it fails."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    start = time.monotonic()
    done = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}")
    return time.monotonic() - start


if __name__ == "__main__":
    main()
