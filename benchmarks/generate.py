"""Generation through Ray Data and its engines against bare `vllm.LLM.generate`: tokens/s on the same prompts.

    python benchmarks/generate.py [--base embedded] [--prompts 48] [--repeats 2]

Both run the same prompts, of both phases one after the other, with the same sampling and engine arguments, each
on warm engines: starting them is not timed. Two bare engines, vLLM as it is installed and vLLM with this
package's plugin as the pipeline has it, stay up, idle while Ray runs, and take their turns before and after:
bare 1, Ray starts, pipeline 1, pipeline 2, Ray ends, bare 2. So neither side has Ray's processes beside it that
should not, and a machine whose pace drifts hits all. Each repeat has prompts of its own, so that no prefix cache
holds them. Prints one JSON object. The ratio to stock vLLM is what a user gets; the one to vLLM with the plugin
is what the way through Ray costs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

from selfmoe_ray.base_model import BaseModel, load_tokenizer, resolve
from selfmoe_ray.config import RunConfig, parse_config
from selfmoe_ray.domains.domain import builtin_names, load_domains
from selfmoe_ray.engine.plan import EnginePlan, Pool, engine_kwargs, env_vars, plan_engines
from selfmoe_ray.generation.domain_state import DomainState, Part
from selfmoe_ray.machines.limits import usable_cores
from selfmoe_ray.run.events import silent
from selfmoe_ray.run.records import Instruction, Phase

MAX_TOKENS = 128
ANSWER = "turn:"
PHASES: tuple[Phase, ...] = ("brainstorm", "respond")
# What tells the bare engines apart: vLLM as it is installed, and with this package's plugin.
BARE = {"stock vLLM": {"VLLM_PLUGINS": ""}, "vLLM with the plugin": {}}
# Seconds and tokens of each phase.
Rates = dict[Phase, tuple[float, int]]
SPANS = {**{phase: (phase,) for phase in PHASES}, "both": PHASES}


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
    sides: dict[str, dict[int, Rates]] = {name: {} for name in ("pipeline", *BARE)}
    with ExitStack() as stack:
        measures = {name: stack.enter_context(bare_engine(settings, environment | own)) for name, own in BARE.items()}
        for first in range(1, arguments.repeats + 1, 2):
            both = range(first, min(first + 2, arguments.repeats + 1))
            for name, measure in measures.items():
                sides[name][first] = measure(first)
            sides["pipeline"] |= run_pipeline(arguments, config, base, plan, both)
            for name, measure in measures.items():
                sides[name] |= {repeat: measure(repeat) for repeat in both[1:]}
    result = {
        "base": arguments.base,
        "prompts": arguments.prompts * len(builtin_names()),
        "tokens_per_second": {name: [summary(turn) for turn in turns.values()] for name, turns in sides.items()},
        "pipeline_against": {name: ratios(sides["pipeline"], sides[name]) for name in BARE},
    }
    print(json.dumps(result, indent=2))


def summary(turn: Rates) -> dict[str, float]:
    """Tokens/s of each phase and of both."""
    return {name: round(rate(turn, phases), 1) for name, phases in SPANS.items()}


def ratios(pipeline: dict[int, Rates], bare: dict[int, Rates]) -> dict[str, float]:
    """Mean over the repeats of the pipeline's tokens/s over the other's."""
    return {
        name: round(statistics.mean(rate(pipeline[each], phases) / rate(bare[each], phases) for each in bare), 3)
        for name, phases in SPANS.items()
    }


def rate(turn: Rates, phases: tuple[Phase, ...]) -> float:
    """Tokens/s over some phases."""
    return sum(turn[phase][1] for phase in phases) / sum(turn[phase][0] for phase in phases)


def one_engine(config: RunConfig) -> EnginePlan:
    """One engine for all domains, on a GPU where there is one."""
    import torch

    devices = {"CPU": float(usable_cores()), "GPU": float(torch.cuda.is_available())}
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
        "respond": {"max_tokens": MAX_TOKENS},
    }
    return parse_config({"domains": builtin_names(), "generation": generation})


def make_parts(config: RunConfig, repeat: int, phase: Phase) -> list[Part]:
    """The first wave's parts of a run with this seed; of repeat 0, which warms up, one part a domain.

    The tasks to answer are the domain's seeds, over again where it has fewer than were asked for.
    """
    parts = []
    for domain in load_domains(config.domains):
        state = DomainState(domain, domain.seeds, config.generation, seed=repeat)
        tasks = (
            Instruction(f"{domain.name}/{repeat}/{number}", domain.name, seed.instruction, seed.input)
            for number, seed in enumerate(itertools.cycle(domain.seeds))
        )
        count = config.generation.examples_per_domain
        made = (
            state.plan(0) if phase == "brainstorm" else state.respond_parts(repeat, [*itertools.islice(tasks, count)])
        )
        parts += [*made][: None if repeat else 1]
    return parts


def run_pipeline(
    arguments: argparse.Namespace, config: RunConfig, base: BaseModel, plan: EnginePlan, repeats: Iterable[int]
) -> dict[int, Rates]:
    """Each repeat through a warmed engine pool."""
    from selfmoe_ray.generation.ray_stage import EnginePools
    from selfmoe_ray.machines.ray_session import ray_session

    turns: dict[int, Rates] = {}
    with ray_session(), EnginePools(config, base, plan, silent) as pools:
        for repeat in (0, *repeats):
            turns[repeat] = {}
            for phase in PHASES:
                parts = make_parts(config, repeat, phase)
                start = time.perf_counter()
                tokens = sum(row.completion_tokens for _, rows in pools.complete(parts) for row in rows)
                turns[repeat][phase] = time.perf_counter() - start, tokens
    return {repeat: turns[repeat] for repeat in repeats}


@contextmanager
def bare_engine(settings: dict[str, Any], environment: dict[str, str]) -> Iterator[Callable[[int], Rates]]:
    """The bare side in a process of its own (parts of the environment count at its start only), warmed."""
    command = [sys.executable, *sys.argv, "--worker", json.dumps(settings)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=os.environ | environment, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        ask, answers = process.stdin, process.stdout

        def measure(repeat: int) -> Rates:
            print(repeat, file=ask, flush=True)
            for line in answers:
                if line.startswith(ANSWER):
                    return cast(Rates, json.loads(line.removeprefix(ANSWER)))
            raise SystemExit("the bare engine ended; its own message is above")

        measure(0)
        yield measure
        ask.close()


def serve_bare(arguments: argparse.Namespace, settings: dict[str, Any]) -> None:
    """Runs every repeat that stdin asks for through `vllm.LLM.generate`."""
    from vllm import LLM, SamplingParams

    from selfmoe_ray.generation.ray_pool import sampling_params

    config, base = make_config(arguments.prompts), resolve(arguments.base)
    tokenizer = load_tokenizer(base.path)
    engine = LLM(base.path, **settings)
    for line in sys.stdin:
        turn = {}
        for phase in PHASES:
            prompts = [prompt for part in make_parts(config, int(line), phase) for prompt in part.prompts]
            tokens = tokenizer([prompt.text for prompt in prompts])["input_ids"]
            sampling = sampling_params(config.generation, phase)
            parameters = [SamplingParams(**sampling, seed=prompt.seed) for prompt in prompts]
            start = time.perf_counter()
            outputs = engine.generate([{"prompt_token_ids": each} for each in tokens], parameters, use_tqdm=False)
            seconds = time.perf_counter() - start
            turn[phase] = seconds, sum(len(output.outputs[0].token_ids) for output in outputs)
        print(ANSWER, json.dumps(turn), flush=True)


if __name__ == "__main__":
    main()
