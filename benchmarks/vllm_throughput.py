"""vLLM serving MiXSE against vLLM serving its base: decode and prefill tokens/s, side by side.

    python benchmarks/vllm_throughput.py [--mixse runs/demo/mixse | --experts 4,8,16,32] [--compiled]

Both engines are up at once and take turns, so that a slow moment of the machine hits both; the ratio is
the median over the turns of MiXSE / base, with the range. Decode is timed over the tokens after the
first, prefill over prompts that share no prefix. Without --mixse, mixtures with random experts and a
random router are made over --base-model. On a GPU the script runs as it is.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from selfmoe_ray.base_model import load_model, resolve
from selfmoe_ray.config import MixtureConfig
from selfmoe_ray.engine.threads import BIND
from selfmoe_ray.machines.limits import cores_to_pin, usable_cores
from selfmoe_ray.mixture.checkpoint import read_spec, save_mixse
from selfmoe_ray.mixture.model import attach
from selfmoe_ray.mixture.spec import MixtureSpec

DECODE_PROMPT = 16
Measure = Callable[[Any, int], float]


def main() -> None:
    """Measure every mixture that was asked for against one base engine."""
    arguments = parse()
    prepare_environment()
    measures: dict[str, Measure] = {
        f"decode, batch {batch}": partial(decode, batch=batch, tokens=arguments.tokens) for batch in arguments.batch
    }
    measures["prefill"] = partial(prefill, prompts=arguments.prompts, length=arguments.length)
    print(f"{device()}; {'compiled' if arguments.compiled else 'eager'}; {arguments.repeats} turns")
    with tempfile.TemporaryDirectory() as scratch:
        mixtures = dict(find_mixtures(arguments, Path(scratch)))
        base_path = resolve(read_spec(next(iter(mixtures.values()))).base_model).path
        requests = max(arguments.batch)
        with engine(base_path, arguments, requests) as base:
            for label, folder in mixtures.items():
                with engine(str(folder), arguments, requests) as mixse:
                    report(label, take_turns(base, mixse, measures, arguments.repeats))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixse", type=Path, help="the `mixse` directory of a finished run")
    parser.add_argument("--base-model", default="embedded")
    parser.add_argument("--experts", type=numbers, default=[4], help="numbers of random experts: 4,8,16,32")
    parser.add_argument("--dtype", default="auto", help="of both engines; auto is the base's own")
    parser.add_argument("--compiled", action="store_true", help="torch.compile, as vLLM does unless told otherwise")
    parser.add_argument("--batch", type=numbers, default=[32, 64], help="requests that decode at once: 32,64")
    parser.add_argument("--tokens", type=int, default=32, help="decoded tokens a request")
    parser.add_argument("--prompts", type=int, default=8, help="prompts of a prefill")
    parser.add_argument("--length", type=int, default=512, help="tokens of a prefill's prompt")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.4, help="of each engine; unused on a CPU")
    return parser.parse_args()


def numbers(value: str) -> list[int]:
    """Comma-separated integers."""
    return [int(each) for each in value.split(",")]


def prepare_environment() -> None:
    """On a CPU: all cores for the workers and Intel's OpenMP, as the pipeline's own engines have."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if torch.cuda.is_available():
        return
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    if cores := cores_to_pin():
        os.environ.setdefault(BIND, ",".join(map(str, cores)))
    intel_openmp = Path(sys.prefix) / "lib" / "libiomp5.so"
    if intel_openmp.exists():
        os.environ.setdefault("LD_PRELOAD", str(intel_openmp))


def device() -> str:
    """What the engines run on."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{usable_cores()} CPU cores"


def find_mixtures(arguments: argparse.Namespace, scratch: Path) -> Iterator[tuple[str, Path]]:
    """The mixture that was named, or one of each number of experts."""
    if arguments.mixse:
        yield f"{arguments.mixse}", arguments.mixse
        return
    for count in arguments.experts:
        yield f"{count} experts", make_mixture(arguments.base_model, count, scratch / str(count))


def make_mixture(base_model: str, count: int, folder: Path) -> Path:
    """Random experts of rank 8 and a random router, top-1."""
    base = resolve(base_model)
    names = [f"expert{index}" for index in range(count)]
    config = MixtureConfig(rank=8, num_experts_per_tok=1)
    spec = MixtureSpec.uniform(names, config, base.value, base.content_hash)
    model = attach(load_model(base.path, "float32"), spec)
    for index in range(count):
        for parameter in model.expert_parameters(index):
            torch.nn.init.normal_(parameter, std=0.01)
    save_mixse(model, folder, base)
    return folder


@contextmanager
def engine(model: str, arguments: argparse.Namespace, requests: int) -> Iterator[Any]:
    """A vLLM engine for this many requests at once; warmed up by its first turn."""
    from vllm import LLM

    llm = LLM(
        model,
        dtype=arguments.dtype,
        enforce_eager=not arguments.compiled,
        max_model_len=2 * (arguments.length + arguments.tokens),
        max_num_seqs=requests,
        enable_prefix_caching=False,
        gpu_memory_utilization=arguments.gpu_memory_utilization,
        disable_log_stats=True,
    )
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()


def decode(llm: Any, seed: int, batch: int, tokens: int) -> float:
    """Tokens/s after the first token of each request."""
    prompts = random_prompts(batch, DECODE_PROMPT, seed)
    first = seconds(llm, prompts, 1)
    return batch * tokens / (seconds(llm, prompts, 1 + tokens) - first)


def prefill(llm: Any, seed: int, prompts: int, length: int) -> float:
    """Prompt tokens/s."""
    return prompts * length / seconds(llm, random_prompts(prompts, length, seed), 1)


def random_prompts(count: int, length: int, seed: int) -> list[Any]:
    """Token prompts from the low part of the vocabulary, which every base has."""
    draw = torch.Generator().manual_seed(seed)
    return [{"prompt_token_ids": row} for row in torch.randint(10, 1000, (count, length), generator=draw).tolist()]


def seconds(llm: Any, prompts: list[Any], tokens: int) -> float:
    """Wall time until every request has its tokens."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    start = time.perf_counter()
    llm.generate(prompts, sampling, use_tqdm=False)
    return time.perf_counter() - start


def take_turns(base: Any, mixse: Any, measures: dict[str, Measure], repeats: int) -> dict[str, list[tuple[float, ...]]]:
    """(base, MiXSE) rates of each turn; the first turn warms up and is dropped."""
    turns: dict[str, list[tuple[float, ...]]] = {name: [] for name in measures}
    for turn in range(repeats + 1):
        for name, measure in measures.items():
            # Who goes first alternates: a machine that slows down or speeds up favours neither.
            engines = (base, mixse) if turn % 2 else (mixse, base)
            rates = {id(each): measure(each, turn) for each in engines}
            turns[name].append((rates[id(base)], rates[id(mixse)]))
    return {name: rates[1:] for name, rates in turns.items()}


def report(label: str, turns: dict[str, list[tuple[float, ...]]]) -> None:
    """Medians, the ratio's median and its range."""
    print(f"\n{label:<24}{'base tok/s':>12}{'MiXSE tok/s':>13}{'ratio':>8}   range")
    for name, rates in turns.items():
        base, mixse = (statistics.median(each) for each in zip(*rates, strict=True))
        ratios = [mixse / base for base, mixse in rates]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"  {name:<22}{base:>12.0f}{mixse:>13.0f}{statistics.median(ratios):>8.2f}   {spread}", flush=True)


if __name__ == "__main__":
    main()
