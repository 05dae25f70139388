"""One Ray cluster and one deployed mixture for all tests of this folder; each engine start takes most of a minute."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
import yaml

from selfmoe_ray.machines.processes import command_line

CONFIG = Path(__file__).parents[3] / "serve_configs" / "mixse_local.yaml"
KEY = "key-of-the-tests"
ENVIRONMENT = {
    "MIXSE_TEST_KEYS": f"{KEY}\nanother-key",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    # A busy machine takes longer than the default 30 s to start Ray's own processes.
    "RAY_agent_register_timeout_ms": "120000",
    "RAY_raylet_start_wait_time_s": "120",
}


@dataclass
class Server:
    """A deployed mixture: the shipped config with another model, and the `serve` command to change it."""

    mixse_dir: Path
    config_file: Path
    dashboard: str
    port: int
    config: dict[str, Any] = field(default_factory=dict)
    key: str = KEY

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def deploy(self, **options: Any) -> None:
        """`serve deploy` with these options of the deployment; waits until the replicas run.

        Other numbers leave running replicas alone.
        """
        self.config = yaml.safe_load(CONFIG.read_text())
        self.config["http_options"]["port"] = self.port
        application = self.config["applications"][0]
        application["args"] = {
            "mixse_dir": str(self.mixse_dir),
            "name": "tiny",
            "engine": {"dtype": "float32", "max_model_len": 256, "max_num_seqs": 8, "enforce_eager": True},
            "limits": {"body_bytes": 65536, "max_tokens": 150, "n": 4, "prompts": 4},
            "api_key_env": "MIXSE_TEST_KEYS",
        }
        application["deployments"] = [{"name": "Mixse", "health_check_period_s": 1, **options}]
        self.config_file.write_text(yaml.safe_dump(self.config))
        command = [str(Path(sys.executable).with_name("serve")), "deploy", str(self.config_file), "-a", self.dashboard]
        before = self.application["last_deployed_time_s"]
        subprocess.run(command, check=True, timeout=120)
        self.wait_for(lambda: self.application["last_deployed_time_s"] > before, 30)
        self.wait_for(lambda: self.application["status"] == "RUNNING", 240)

    @property
    def application(self) -> dict[str, Any]:
        """Serve's own view of the application."""
        from ray import serve

        status = serve.status().applications.get("mixse")
        return vars(status) if status else {"status": "absent", "last_deployed_time_s": 0.0}

    def replicas(self, state: str = "RUNNING") -> int:
        """How many replicas of the mixture are in a state."""
        return int(self.application["deployments"]["Mixse"].replica_states.get(state, 0))

    def wait_for(self, condition: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds} s; Serve says {self.application}"
            time.sleep(0.2)

    def http(self, key: str | None = KEY, timeout: float = 120) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=timeout)

    def openai(self, key: str = KEY, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, **{"max_retries": 0, "timeout": 120, **options})

    def processes(self, name: str) -> list[psutil.Process]:
        """The processes of this cluster whose title starts with `name`."""
        found = psutil.Process().children(recursive=True)
        return [each for each in found if command_line(each.pid).startswith(name)]


@dataclass(frozen=True)
class Outcome:
    """What became of a request. status: 0 where the connection ended without a response.

    done: an event stream came to its `[DONE]` and held no error event. error: the answer holds an error object.
    broken: the connection ended before the answer did.
    """

    status: int
    text: str
    retry_after: str | None = None
    broken: bool = False

    @property
    def error(self) -> bool:
        return '"error"' in self.text

    @property
    def done(self) -> bool:
        return self.text.endswith("data: [DONE]\n\n") and not self.error


class Load:
    """Clients that ask the server for greedy completions of a fixed length."""

    def __init__(self, server: Server):
        self.server = server
        # The threads of clients that have the beginning of a stream.
        self.streaming: set[int] = set()

    def ask(self, http: httpx.Client, max_tokens: int, stream: bool) -> Outcome:
        body = {"prompt": "What is the capital?", "temperature": 0, "ignore_eos": True}
        answer, text = None, ""
        try:
            with http.stream(
                "POST", "/v1/completions", json={**body, "max_tokens": max_tokens, "stream": stream}
            ) as answer:
                for piece in answer.iter_text():
                    text += piece
                    if stream:
                        self.streaming.add(threading.get_ident())
        except httpx.RemoteProtocolError:
            return Outcome(answer.status_code if answer else 0, text, broken=True)
        finally:
            self.streaming.discard(threading.get_ident())
        return Outcome(answer.status_code, text, answer.headers.get("retry-after"))

    def together(self, clients: int, max_tokens: int, stream: bool = False) -> list[Outcome]:
        """One request of each client, at once."""
        with self.server.http() as http, ThreadPoolExecutor(clients) as pool:
            return list(pool.map(lambda _: self.ask(http, max_tokens, stream), range(clients)))

    @contextmanager
    def steady(self, clients: int, max_tokens: int) -> Iterator[list[Outcome]]:
        """Clients that ask again and again, every other time for a stream, until the block ends."""
        outcomes: list[Outcome] = []
        stop = threading.Event()

        def work(http: httpx.Client, turn: int) -> None:
            while not stop.is_set():
                turn += 1
                outcomes.append(self.ask(http, max_tokens, stream=turn % 2 == 0))
                # A refused client that asked again at once would only keep the machine busy.
                time.sleep(0 if outcomes[-1].status == 200 else 0.5)

        with self.server.http() as http, ThreadPoolExecutor(clients) as pool:
            futures = [pool.submit(work, http, number) for number in range(clients)]
            try:
                yield outcomes
            finally:
                stop.set()
                for future in futures:
                    future.result()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="package")
def server(mixse_dir: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The mixture on one replica; a test that deploys other options puts the first ones back."""
    import ray
    from ray import serve

    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        context = ray.init(address="local", num_cpus=8, dashboard_port=free_port(), log_to_driver=False)
        try:
            folder = tmp_path_factory.mktemp("serve")
            made = Server(mixse_dir("llama"), folder / "serve.yaml", f"http://{context.dashboard_url}", free_port())
            made.deploy()
            yield made
            serve.shutdown()
        finally:
            ray.shutdown()


@pytest.fixture
def load(server: Server) -> Load:
    """Clients of the server."""
    return Load(server)


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    """The official client."""
    return server.openai()
