"""Forward passes side by side: the base, MiXSE, and PEFT's X-LoRA over the same four experts.

    python benchmarks/forward.py [--base-model embedded] [--batch 4] [--length 128] [--repeats 3]

Prints tokens/s of each and the ratios. X-LoRA runs the base once more to route, so its cost is the
price of the second pass and of its loop over adapters.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from selfmoe_ray.base_model import load_model, resolve
from selfmoe_ray.config import MixtureConfig
from selfmoe_ray.mixture.checkpoint import save_expert
from selfmoe_ray.mixture.gate import Gate
from selfmoe_ray.mixture.model import MixtureModel, attach
from selfmoe_ray.mixture.spec import MixtureSpec

EXPERTS = ["knowledge", "reasoning", "math", "coding"]


def main() -> None:
    """Measure in turns, so that a slow moment of the machine hits all alike."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-model", default="embedded")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    path = resolve(arguments.base_model).path
    mixture = make_mixture(path, arguments.dtype, device)
    with tempfile.TemporaryDirectory() as folder:
        xlora = make_xlora(mixture, path, arguments.dtype, device, Path(folder))
    tokens = torch.randint(10, 1000, (arguments.batch, arguments.length), device=device)
    mask = torch.ones_like(tokens)
    runs: dict[str, Callable[[], Any]] = {
        "base": lambda: mixture(gate=Gate.off(), input_ids=tokens, attention_mask=mask, use_cache=False),
        "MiXSE": lambda: mixture(input_ids=tokens, attention_mask=mask, use_cache=False),
        "X-LoRA": lambda: xlora(input_ids=tokens, attention_mask=mask, use_cache=False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(arguments.repeats + 1):
        for name, run in runs.items():
            elapsed = timed(run, device)
            if repeat:
                seconds[name].append(elapsed)
    pace = {name: tokens.numel() / min(each) for name, each in seconds.items()}
    for name, rate in pace.items():
        print(f"{name:8} {rate:10.0f} tokens/s")
    print(f"MiXSE / base    {pace['MiXSE'] / pace['base']:.2f}")
    print(f"MiXSE / X-LoRA  {pace['MiXSE'] / pace['X-LoRA']:.2f}")


def make_mixture(path: str, dtype: str, device: str) -> MixtureModel:
    """Four random experts with a router, packed for inference."""
    model = attach(load_model(path, dtype, device), MixtureSpec.uniform(EXPERTS, MixtureConfig()))
    for index in range(len(EXPERTS)):
        for parameter in model.expert_parameters(index):
            torch.nn.init.normal_(parameter, std=0.01)
    model.train_only([])
    return model.eval()


def make_xlora(mixture: MixtureModel, path: str, dtype: str, device: str, folder: Path) -> Any:
    """PEFT's X-LoRA model over the mixture's experts."""
    from peft import XLoraConfig, get_peft_model

    adapters = {}
    for index, name in enumerate(EXPERTS):
        save_expert(mixture, index, folder / name)
        # PEFT numbers the adapters that it loads, whatever their names here.
        adapters[str(index)] = str(folder / name)
    base = load_model(path, dtype, device)
    base.config.use_cache = False
    config = XLoraConfig(task_type="CAUSAL_LM", hidden_size=base.config.hidden_size, adapters=adapters, top_k_lora=1)
    return get_peft_model(base, config).to(device).eval()


@torch.inference_mode()
def timed(run: Callable[[], Any], device: str) -> float:
    """Seconds of one call, the device's queue included."""
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
