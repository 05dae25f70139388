"""What it costs that any request could ask for its routing, and what it costs to ask.

    python benchmarks/routing_trace.py <run>/mixse [--batch 32] [--tokens 32] [--repeats 8]

One eager engine decodes the same batch in turns: with the recording taken out of the forward pass
and the batch preparation; as it is served, with nobody asking; and with every request asking. Prints
the tokens/s of each and the ratios to the first.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import Any


def main() -> None:
    """Measure in turns, so that a slow moment of the machine hits all alike."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mixse_dir")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=8)
    arguments = parser.parse_args()
    # For the function that is sent to the worker.
    os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from vllm import LLM

    from selfmoe_ray.engine.routing_log import LOG

    llm = LLM(arguments.mixse_dir, dtype="bfloat16", max_model_len=512, enforce_eager=True)
    seconds: dict[str, list[float]] = {"without": [], "not asked": [], "mean": [], "layers": []}
    order = list(seconds)
    for repeat in range(arguments.repeats + 1):
        for way in order[repeat % len(order) :] + order[: repeat % len(order)]:
            llm.collective_rpc(remove_recording if way == "without" else restore_recording)
            level = way if way in ("mean", "layers") else None
            start = time.perf_counter()
            outputs = decode(llm, arguments.batch, arguments.tokens, level)
            LOG.fetch_offline(llm, outputs if level else [])
            if repeat:
                seconds[way].append(time.perf_counter() - start)
    llm.llm_engine.engine_core.shutdown()
    tokens = arguments.batch * arguments.tokens
    for way, times in seconds.items():
        ratio = statistics.median(base / own for base, own in zip(seconds["without"], times, strict=True))
        print(f"{way:10} {tokens / statistics.median(times):8.1f} tokens/s  {ratio:.3f}")


def decode(llm: Any, batch: int, tokens: int, level: str | None) -> list[Any]:
    """A short prompt and a long answer for each request."""
    from vllm import SamplingParams

    params = SamplingParams(
        temperature=0, max_tokens=tokens, ignore_eos=True, extra_args={"mixse_routing": level} if level else None
    )
    prompts = [{"prompt_token_ids": [1, 100 + index, 200, 300]} for index in range(batch)]
    return llm.generate(prompts, params, use_tqdm=False)


def remove_recording(worker: Any) -> None:
    """In the worker: nothing is written or read."""
    recorder = worker.model_runner.get_model().mixture.recorder
    recorder.record = lambda *_: None
    recorder.begin_step = lambda *_: None


def restore_recording(worker: Any) -> None:
    """In the worker: as it is served."""
    recorder = worker.model_runner.get_model().mixture.recorder
    vars(recorder).pop("record", None)
    vars(recorder).pop("begin_step", None)


if __name__ == "__main__":
    main()
