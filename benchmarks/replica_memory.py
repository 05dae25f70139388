"""What one more replica costs in memory and time, with and without shared base weights.

    python benchmarks/replica_memory.py <run>/mixse [--replicas 3] [--dtype bfloat16]

Starts engines of the mixture one after another, each in processes of its own, has each answer a
prompt, and adds up PSS (every page divided by the number of processes that map it) over all
processes of all replicas, by kind of mapping:

    store      the file of shared base weights
    anonymous  heap, KV cache and, where they are private, the weights
    files      libraries, and shared memory between an engine's own processes

The KV cache and the Python runtime are the same in both ways, so they drop out of the difference:
weight memory that a further shared replica adds = growth of the store + (base weights - what its
anonymous memory is below an unshared replica's). An unshared engine may hold more than the base's
bytes, as vLLM keeps the output matrix both packed and unpacked; then the last term is 0, not less.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

MIB = 2**20
BATCH, TOKENS = 32, 32
KINDS = ("store", "anonymous", "files")


def main() -> None:
    """Shared first, then unshared; the same number of replicas."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mixse_dir")
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    arguments = parser.parse_args()
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
    os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
    settings = {"model": arguments.mixse_dir, "dtype": arguments.dtype, "max_model_len": 512, "enforce_eager": True}
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="mixse-benchmark-") as root:
        sharing = {"load_format": "mixse_shared", "model_loader_extra_config": {"path": root}}
        shared = measure(settings | sharing, arguments.replicas, root)
    unshared = measure(settings, arguments.replicas, root)
    report(shared, unshared)


def measure(settings: dict[str, Any], replicas: int, root: str) -> list[dict[str, float]]:
    """For 1 to `replicas` replicas: PSS by kind and the store in bytes; the newest one's seconds and tokens/s."""
    spawn = multiprocessing.get_context("spawn")
    running, found = [], []
    try:
        for count in range(1, replicas + 1):
            here, there = spawn.Pipe()
            start = time.perf_counter()
            process = spawn.Process(target=replica, args=(settings, there))
            process.start()
            running.append((process, here))
            there.close()
            here.recv()
            seconds = time.perf_counter() - start
            pace = here.recv()
            size = sum(path.stat().st_size for path in Path(root).glob("*/weights"))
            memory = pss([each.pid for each, _ in running], root)
            found.append({**memory, "seconds": seconds, "pace": pace, "store_size": size})
            print("shared  " if size else "unshared", count, _row(found[-1]), flush=True)
    finally:
        for process, pipe in running:
            pipe.close()
            process.join()
    return found


def replica(settings: dict[str, Any], pipe: Connection) -> None:
    """An engine that says when it has answered once, then its decode tokens/s, and stays until the pipe closes."""
    from vllm import LLM, SamplingParams

    llm = LLM(**settings, seed=0)
    llm.generate("The capital of France is", SamplingParams(max_tokens=8), use_tqdm=False)
    pipe.send("ready")
    start = time.perf_counter()
    llm.generate(["Once"] * BATCH, SamplingParams(max_tokens=TOKENS, ignore_eos=True), use_tqdm=False)
    pipe.send(BATCH * TOKENS / (time.perf_counter() - start))
    try:
        pipe.recv()
    except EOFError:
        llm.llm_engine.engine_core.shutdown()


def pss(roots: list[int | None], store: str) -> dict[str, float]:
    """PSS in bytes by kind, over processes and all their descendants."""
    import psutil

    kinds: Counter[str] = Counter(dict.fromkeys(KINDS, 0))
    for root in map(psutil.Process, roots):
        for process in (root, *root.children(recursive=True)):
            for mapping in process.memory_maps(grouped=False):
                if mapping.path.startswith(store):
                    kind = "store"
                else:
                    kind = "anonymous" if mapping.path.startswith("[") else "files"
                kinds[kind] += mapping.pss
    return dict(kinds)


def report(shared: list[dict[str, float]], unshared: list[dict[str, float]]) -> None:
    """What each replica beyond the first adds."""
    base = shared[0]["store_size"]
    print(f"base weights {base / MIB:.0f} MiB")
    for count in range(1, len(shared)):
        grown = [{kind: ways[count][kind] - ways[count - 1][kind] for kind in KINDS} for ways in (shared, unshared)]
        saved = grown[1]["anonymous"] - grown[0]["anonymous"]
        added = max(0.0, grown[0]["store"]) + max(0.0, base - saved)
        print(
            f"replica {count + 1}: anonymous memory +{grown[0]['anonymous'] / MIB:.0f} MiB shared, "
            f"+{grown[1]['anonymous'] / MIB:.0f} MiB unshared, {saved / MIB:.0f} MiB less; "
            f"weight memory {added / MIB:.0f} MiB more, {added / base:.1%} of the base's"
        )
    for name, ways in (("shared", shared), ("unshared", unshared)):
        print(f"seconds to the first answer, {name}: " + ", ".join(f"{each['seconds']:.1f}" for each in ways))
        print(f"decode tokens/s at batch {BATCH}, {name}: " + ", ".join(f"{each['pace']:.0f}" for each in ways))


def _row(found: dict[str, float]) -> str:
    kinds = ", ".join(f"{kind} {found[kind] / MIB:.0f}" for kind in KINDS)
    total = sum(found[kind] for kind in KINDS) / MIB
    return f"replica(s): PSS {total:.0f} MiB ({kinds}); {found['seconds']:.1f} s, {found['pace']:.0f} tokens/s"


if __name__ == "__main__":
    main()
