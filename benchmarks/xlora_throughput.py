"""End to end: vLLM serving MiXSE against transformers generating with PEFT's X-LoRA over the same experts.

    python benchmarks/xlora_throughput.py [--base-model embedded] [--batch 32] [--tokens 32] [--repeats 3]

Both answer the same prompts greedily, with as many tokens. X-LoRA runs the base once more to route and
keeps no KV cache, as PEFT asks of it. Prints tokens/s of each and the ratio of the medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from forward import make_xlora
from vllm_throughput import device, engine, make_mixture, prepare_environment, random_prompts, seconds

from selfmoe_ray.base_model import resolve
from selfmoe_ray.mixture.checkpoint import load_mixse


def main() -> None:
    """One after the other: the two would take each other's cores."""
    arguments = parse()
    prepare_environment()
    print(f"{device()}; batch {arguments.batch}, {arguments.length} + {arguments.tokens} tokens, {arguments.dtype}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_mixture(arguments.base_model, 4, Path(scratch) / "mixse")
        with engine(str(folder), arguments, arguments.batch) as mixse:
            served = rates(arguments, lambda prompts, tokens: seconds(mixse, prompts, tokens))
        on = "cuda" if torch.cuda.is_available() else "cpu"
        path = resolve(arguments.base_model).path
        xlora = make_xlora(load_mixse(folder), path, arguments.dtype, on, Path(scratch))
        generated = rates(arguments, lambda prompts, tokens: xlora_seconds(xlora, prompts, tokens))
    print(f"vLLM MiXSE           {served:10.1f} tokens/s")
    print(f"transformers X-LoRA  {generated:10.1f} tokens/s")
    print(f"ratio                {served / generated:10.1f}")


def parse() -> argparse.Namespace:
    """The command line, with what `engine` reads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-model", default="embedded")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of an answer")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.4)
    return parser.parse_args()


def rates(arguments: argparse.Namespace, run: Any) -> float:
    """Median answer tokens/s; the first run warms up and is dropped."""
    runs = [
        run(random_prompts(arguments.batch, arguments.length, seed), arguments.tokens)
        for seed in range(arguments.repeats + 1)
    ]
    return arguments.batch * arguments.tokens / statistics.median(runs[1:])


@torch.inference_mode()
def xlora_seconds(model: Any, prompts: list[Any], tokens: int) -> float:
    """Wall time of one `generate`."""
    ids = torch.tensor([prompt["prompt_token_ids"] for prompt in prompts], device=model.device)
    start = time.perf_counter()
    model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        min_new_tokens=tokens,
        max_new_tokens=tokens,
        use_cache=False,
    )
    if ids.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
