"""Generation through Ray Data and its engines against bare `vllm.LLM.generate`: tokens/s on the same prompts.

    python benchmarks/generate.py [--base embedded] [--prompts 96] [--repeats 2]

Both run the same brainstorm prompts with the same sampling, engine arguments and environment, one after the
other, each on warm engines: starting them is not timed. Each repeat has prompts of its own, so that no prefix
cache holds them. Prints one JSON object; a ratio of 1 says that nothing is lost on the way through Ray.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

from selfmoe_ray.base_model import BaseModel, load_tokenizer, resolve
from selfmoe_ray.config import RunConfig, parse_config
from selfmoe_ray.domains.domain import builtin_names, load_domains
from selfmoe_ray.events import silent
from selfmoe_ray.generation.engines import EnginePlan, Pool, engine_kwargs, env_vars, plan_engines
from selfmoe_ray.generation.prompts import STOP
from selfmoe_ray.generation.selection import DomainState, Part

MAX_TOKENS = 128


def main() -> None:
    """Run both sides, or with --worker the bare one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--prompts", type=int, default=96, help="prompts a domain")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(run_bare(arguments, json.loads(arguments.worker))))
        return
    config, base = make_config(arguments.prompts), resolve(arguments.base)
    with_ray, plan = run_pipeline(arguments, config, base)
    settings = engine_kwargs(plan, config.generation, config.resources.generation)
    environment = env_vars(plan, config.resources.generation, is_single_node=True)
    bare = run_worker(settings, environment)
    result = {
        "base": arguments.base,
        "prompts": arguments.prompts * len(builtin_names()),
        "tokens_per_second": {"pipeline": with_ray, "bare": bare},
        "ratio_of_best": round(max(with_ray) / max(bare), 3),
    }
    print(json.dumps(result, indent=2))


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


def run_pipeline(arguments: argparse.Namespace, config: RunConfig, base: BaseModel) -> tuple[list[float], EnginePlan]:
    """Tokens/s of each repeat through the engine pool, and the plan of its engines."""
    import ray

    from selfmoe_ray.generation.ray_generate import EnginePools
    from selfmoe_ray.ray_session import ray_session

    rates = []
    with ray_session():
        plan = plan_engines(config.resources.generation, config.domains, ray.cluster_resources())
        one_engine = EnginePlan((Pool(tuple(config.domains), 1),), plan.gpus, plan.cpus, plan.tensor_parallel_size, "")
        with EnginePools(config, base, one_engine, silent) as pools:
            for repeat in range(arguments.repeats + 1):
                parts = make_parts(config, repeat)
                start = time.perf_counter()
                tokens = sum(row.completion_tokens for _, rows in pools.complete(parts) for row in rows)
                rates.append(round(tokens / (time.perf_counter() - start), 1))
    return rates[1:], one_engine


def run_worker(settings: dict[str, Any], environment: dict[str, str]) -> list[float]:
    """The bare side in a process of its own: parts of the environment count at its start only."""
    command = [sys.executable, *sys.argv, "--worker", json.dumps(settings)]
    ran = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(ran.stdout.splitlines()[-1])


def run_bare(arguments: argparse.Namespace, settings: dict[str, Any]) -> list[float]:
    """Tokens/s of each repeat through `vllm.LLM.generate`."""
    from vllm import LLM, SamplingParams

    config, base = make_config(arguments.prompts), resolve(arguments.base)
    tokenizer = load_tokenizer(base.path)
    engine = LLM(base.path, **settings)
    sampling = config.generation.brainstorm
    rates = []
    for repeat in range(arguments.repeats + 1):
        prompts = [prompt for part in make_parts(config, repeat) for prompt in part.prompts]
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
        rates.append(round(made / (time.perf_counter() - start), 1))
    return rates[1:]


if __name__ == "__main__":
    main()
