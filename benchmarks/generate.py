"""Generation through Ray Data and its engines against bare `vllm.LLM.generate`: tokens/s on the same prompts.

    python benchmarks/generate.py [--base embedded] [--prompts 48] [--repeats 2]

Both run the same brainstorm prompts with the same sampling, engine arguments and environment, each on warm
engines: starting them is not timed. The bare engine stays up, idle while Ray runs, and takes its turns
before and after: bare 1, Ray starts, pipeline 1, pipeline 2, Ray ends, bare 2. So neither side has Ray's
processes beside it that should not, and a machine whose pace drifts hits both. Each repeat has prompts of
its own, so that no prefix cache holds them. Prints one JSON object; a ratio of 1 says that nothing is lost
on the way through Ray.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from selfmoe_ray.base_model import BaseModel, load_tokenizer, resolve
from selfmoe_ray.config import RunConfig, parse_config
from selfmoe_ray.domains.domain import builtin_names, load_domains
from selfmoe_ray.events import silent
from selfmoe_ray.generation.engines import EnginePlan, Pool, engine_kwargs, env_vars, plan_engines
from selfmoe_ray.generation.prompts import STOP
from selfmoe_ray.generation.selection import DomainState, Part

MAX_TOKENS = 128
ANSWER = "tokens/s:"


def main() -> None:
    """Run both sides, or with --worker the bare one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--prompts", type=int, default=48, help="prompts a domain")
    parser.add_argument("--repeats", type=int, default=2, help="pairs of turns")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        serve_bare(arguments, json.loads(arguments.worker))
        return
    config, base = make_config(arguments.prompts), resolve(arguments.base)
    plan = one_engine(config)
    settings = engine_kwargs(plan, config.generation, config.resources.generation)
    environment = env_vars(plan, config.resources.generation, is_single_node=True)
    bare: dict[int, float] = {}
    pipeline: dict[int, float] = {}
    with bare_engine(settings, environment) as measure:
        for first in range(1, arguments.repeats + 1, 2):
            both = range(first, min(first + 2, arguments.repeats + 1))
            bare[first] = measure(first)
            pipeline |= run_pipeline(arguments, config, base, plan, both)
            if len(both) > 1:
                bare[first + 1] = measure(first + 1)
    ratios = [pipeline[repeat] / bare[repeat] for repeat in bare]
    result = {
        "base": arguments.base,
        "prompts": arguments.prompts * len(builtin_names()),
        "tokens_per_second": {"pipeline": list(pipeline.values()), "bare": list(bare.values())},
        "ratios": [round(ratio, 3) for ratio in ratios],
        "ratio": round(statistics.mean(ratios), 3),
    }
    print(json.dumps(result, indent=2))


def one_engine(config: RunConfig) -> EnginePlan:
    """One engine for all domains, on a GPU where there is one."""
    import torch

    devices = {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.is_available())}
    plan = plan_engines(config.resources.generation, config.domains, devices)
    return EnginePlan((Pool(tuple(config.domains), 1),), plan.gpus, plan.cpus, plan.tensor_parallel_size, "")


def make_config(prompts: int) -> RunConfig:
    """A run that brainstorms this many prompts a domain in its first wave."""
    generation = {
        "seeds_per_domain": 30,
        "examples_per_domain": prompts,
        "oversample": 1,
        "part_size": 16,
        "max_model_len": 1024,
        "brainstorm": {"max_tokens": MAX_TOKENS},
    }
    return parse_config({"domains": builtin_names(), "generation": generation})


def make_parts(config: RunConfig, repeat: int) -> list[Part]:
    """The first wave's parts of a run with this seed; of repeat 0, which warms up, one part a domain."""
    states = (
        DomainState(domain, domain.seeds, config.generation, seed=repeat) for domain in load_domains(config.domains)
    )
    return [part for state in states for part in state.plan(0)[: None if repeat else 1]]


def run_pipeline(
    arguments: argparse.Namespace, config: RunConfig, base: BaseModel, plan: EnginePlan, repeats: Iterable[int]
) -> dict[int, float]:
    """Tokens/s of each repeat through a warmed engine pool."""
    from selfmoe_ray.generation.ray_generate import EnginePools
    from selfmoe_ray.ray_session import ray_session

    rates = {}
    with ray_session(), EnginePools(config, base, plan, silent) as pools:
        for repeat in (0, *repeats):
            parts = make_parts(config, repeat)
            start = time.perf_counter()
            tokens = sum(row.completion_tokens for _, rows in pools.complete(parts) for row in rows)
            rates[repeat] = round(tokens / (time.perf_counter() - start), 1)
    return {repeat: rates[repeat] for repeat in repeats}


@contextmanager
def bare_engine(settings: dict[str, Any], environment: dict[str, str]) -> Iterator[Callable[[int], float]]:
    """The bare side in a process of its own (parts of the environment count at its start only), warmed."""
    command = [sys.executable, *sys.argv, "--worker", json.dumps(settings)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=os.environ | environment, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        ask, answers = process.stdin, process.stdout

        def measure(repeat: int) -> float:
            print(repeat, file=ask, flush=True)
            for line in answers:
                if line.startswith(ANSWER):
                    return float(line.removeprefix(ANSWER))
            raise SystemExit("the bare engine ended; its own message is above")

        measure(0)
        yield measure
        ask.close()


def serve_bare(arguments: argparse.Namespace, settings: dict[str, Any]) -> None:
    """Tokens/s through `vllm.LLM.generate` for every repeat that stdin asks for."""
    from vllm import LLM, SamplingParams

    config, base = make_config(arguments.prompts), resolve(arguments.base)
    tokenizer = load_tokenizer(base.path)
    engine = LLM(base.path, **settings)
    sampling = config.generation.brainstorm
    for line in sys.stdin:
        prompts = [prompt for part in make_parts(config, int(line)) for prompt in part.prompts]
        tokens = tokenizer([prompt.text for prompt in prompts])["input_ids"]
        parameters = [
            SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_tokens,
                stop=list(STOP),
                seed=prompt.seed,
            )
            for prompt in prompts
        ]
        start = time.perf_counter()
        outputs = engine.generate([{"prompt_token_ids": each} for each in tokens], parameters, use_tqdm=False)
        made = sum(len(output.outputs[0].token_ids) for output in outputs)
        print(ANSWER, round(made / (time.perf_counter() - start), 1), flush=True)


if __name__ == "__main__":
    main()
