"""Ray Serve's MiXSE against vLLM's own server on the same checkpoint: throughput and first-byte latency.

    python benchmarks/serve_overhead.py --mixse runs/demo/mixse [--clients 16] [--turns 7]

Both servers are up at once and take turns, so that a slow moment of the machine hits both. In a turn each
client streams answers of a fixed length one after the other, to prompts that no earlier turn had; the first
byte is timed alone, one client at a time, and among all clients. Prints medians over the turns, with the range.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import httpx

CONFIG = Path(__file__).parents[1] / "serve_configs" / "mixse_local.yaml"
WARM_UP_TURN = -1
START_SECONDS = 300
DTYPE, MAX_MODEL_LEN, MAX_NUM_SEQS = "bfloat16", 1024, 64


@dataclass(frozen=True)
class Turn:
    """tokens_per_second: of all clients. first_byte, busy_first_byte: median seconds, alone and among all."""

    tokens_per_second: float
    first_byte: float
    busy_first_byte: float


def main() -> None:
    """Run both sides and print what is between them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixse", type=Path, default=Path("runs/demo/mixse"))
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128, help="of each answer")
    parser.add_argument("--answers", type=int, default=2, help="of each client in a turn")
    parser.add_argument("--alone", type=int, default=20, help="requests of the lone client in each turn")
    parser.add_argument("--turns", type=int, default=7)
    arguments = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    turns: dict[str, list[Turn]] = {"vLLM": [], "Ray Serve": []}
    with bare_server(arguments.mixse) as bare, ray_serve(arguments.mixse) as served:
        addresses = {"vLLM": bare, "Ray Serve": served}
        for number in range(WARM_UP_TURN, arguments.turns):
            for name, address in addresses.items():
                turn = asyncio.run(take_turn(address, number, arguments))
                print(f"turn {number}, {name}: {turn}", file=sys.stderr, flush=True)
                if number != WARM_UP_TURN:
                    turns[name].append(turn)
    report(turns, arguments)


@contextmanager
def bare_server(folder: Path) -> Iterator[str]:
    """vLLM's server in a process of its own."""
    port = free_port()
    options = ["--model", str(folder), "--served-model-name", "mixse", "--enforce-eager", "--dtype", DTYPE]
    options += ["--max-model-len", str(MAX_MODEL_LEN), "--max-num-seqs", str(MAX_NUM_SEQS)]
    options += ["--host", "127.0.0.1", "--port", str(port), "--disable-uvicorn-access-log"]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *options]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield wait_until_ready(port, process, log)
        finally:
            process.terminate()
            process.wait()


@contextmanager
def ray_serve(folder: Path) -> Iterator[str]:
    """The application of serve_configs, on a cluster of its own."""
    from ray import serve

    from selfmoe_ray.machines.ray_session import ray_session
    from selfmoe_ray.serving.config import parse_serve_args
    from selfmoe_ray.serving.ray_local import read_config
    from selfmoe_ray.serving.ray_serve import application

    engine = {"dtype": DTYPE, "max_model_len": MAX_MODEL_LEN, "max_num_seqs": MAX_NUM_SEQS, "enforce_eager": True}
    config = read_config(str(CONFIG))
    port = free_port()
    with ray_session():
        http = {"host": "127.0.0.1", "port": port}
        serve.start("HeadOnly", http, controller_options=config["controller_options"])
        arguments = parse_serve_args({"mixse_dir": str(folder.absolute()), "engine": engine})
        (deployment,) = config["applications"][0]["deployments"]
        serve.run(application(arguments, ray_actor_options=deployment["ray_actor_options"]))
        yield f"http://127.0.0.1:{port}"
        serve.delete("default")


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(port: int, process: subprocess.Popen[bytes], log: TextIO) -> str:
    """The server's address, once it is well; ends the program with the end of its log where it does not get so."""
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{address}/health").is_success:
                return address
        except httpx.TransportError:
            time.sleep(0.5)
    log.seek(0)
    sys.exit(f"vLLM's server did not start:\n{log.read()[-2000:]}")


async def take_turn(address: str, number: int, arguments: argparse.Namespace) -> Turn:
    """One server's turn: a lone client, then all clients at once."""
    limits = httpx.Limits(max_connections=arguments.clients)
    async with httpx.AsyncClient(base_url=address, timeout=300, limits=limits) as http:
        alone = [await ask(http, f"{number} alone {each}", tokens=1) for each in range(arguments.alone)]
        start = time.perf_counter()
        clients = (ask_on(http, f"{number} together {each}", arguments) for each in range(arguments.clients))
        busy = [first for client in await asyncio.gather(*clients) for first in client]
        seconds = time.perf_counter() - start
    tokens = arguments.clients * arguments.answers * arguments.tokens
    return Turn(tokens / seconds, statistics.median(alone), statistics.median(busy))


async def ask_on(http: httpx.AsyncClient, topic: str, arguments: argparse.Namespace) -> list[float]:
    """One client's answers, one after the other; the seconds until each one's first byte."""
    return [await ask(http, f"{topic} {each}", arguments.tokens) for each in range(arguments.answers)]


async def ask(http: httpx.AsyncClient, topic: str, tokens: int) -> float:
    """Stream one answer; seconds until its first byte of text."""
    body = {"model": "mixse", "prompt": f"{topic}: write a long story about a train.", "max_tokens": tokens}
    start, first = time.perf_counter(), None
    async with http.stream("POST", "/v1/completions", json={**body, "ignore_eos": True, "stream": True}) as answer:
        answer.raise_for_status()
        async for _ in answer.aiter_raw():
            first = first or time.perf_counter() - start
    assert first is not None
    return first


def report(turns: dict[str, list[Turn]], arguments: argparse.Namespace) -> None:
    """Both sides and what is between them."""
    bare, served = turns["vLLM"], turns["Ray Serve"]
    shape = f"{arguments.clients} clients, {arguments.answers} answers each of {arguments.tokens} tokens"
    print(f"{shape}, {arguments.turns} turns")
    for name, side in turns.items():
        speed = statistics.median(turn.tokens_per_second for turn in side)
        first = statistics.median(turn.first_byte for turn in side) * 1000
        print(f"{name:10} {speed:7.1f} tokens/s   first byte alone {first:6.1f} ms")
    pairs = list(zip(served, bare, strict=True))
    show("throughput, Ray Serve / vLLM", [a.tokens_per_second / b.tokens_per_second for a, b in pairs])
    show("added first byte, one client, ms", [(a.first_byte - b.first_byte) * 1000 for a, b in pairs])
    show("added first byte, all clients, ms", [(a.busy_first_byte - b.busy_first_byte) * 1000 for a, b in pairs])


def show(what: str, values: list[float]) -> None:
    """A median with its range."""
    print(f"{what:35} {statistics.median(values):7.3f}  ({min(values):.3f} to {max(values):.3f})")


if __name__ == "__main__":
    main()
