"""What says which base is meant goes with it through every stage, into engines, evaluations and answers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from selfmoe_ray.serving.ray_local import read_config
from tests.evaluation.tiny_tasks import write_tiny_tasks
from tests.faults.chatty import save_chatty_model, save_domain
from tests.faulty_bases import in_hub_cache, with_code
from tests.tiny_models import save_tiny_model

ROOT = Path(__file__).parents[2]
COMMIT, MOVED = "a" * 40, "b" * 40
CONFIG = """
run_name: run
base_model: some-org/some-model@{commit}
trust_remote_code: true
domains: {domains}
generation:
  {{seeds_per_domain: 6, examples_per_domain: 4, accept_fewer: true, max_rounds: 2, part_size: 8, max_model_len: 512,
   dtype: float32, brainstorm: {{max_tokens: 24}}, respond: {{max_tokens: 24}}}}
training:
  {{sources: [synthetic, seeds], dtype: float32, max_length: 128, experts: {{epochs: 1, batch_size: 8}},
   router: {{batch_size: 16, fit_tokens: 256}}}}
measure: {{max_rows_per_domain: 2, answer_tokens: 4}}
"""
LLM = """
import json
from vllm import LLM, SamplingParams
if __name__ == "__main__":
    llm = LLM("runs/run/mixse", trust_remote_code=True, enforce_eager=True, max_model_len=256, dtype="float32")
    gates = ("base", "ant", "router")
    params = [SamplingParams(temperature=0, max_tokens=4, extra_args={"mixse_gate": gate}) for gate in gates]
    print("TEXTS", json.dumps([each.outputs[0].text for each in llm.generate(["ba da fa"] * 3, params)]))
"""


@pytest.mark.serving
@pytest.mark.timeout(2400)
def test_a_commit_with_code_of_its_own_is_generated_with_trained_evaluated_and_served(
    tmp_path: Path, cpu_engines: None
) -> None:
    chatty = save_chatty_model(tmp_path / "chatty")
    writers = {COMMIT: lambda folder: with_code(chatty, folder), MOVED: lambda folder: save_tiny_model("llama", folder)}
    in_hub_cache(tmp_path / "hub", "some-org/some-model", writers, main=MOVED)
    shutil.rmtree(chatty)
    domains = [save_domain(tmp_path, name) for name in ("ant", "bee")]
    (tmp_path / "run.yaml").write_text(CONFIG.format(commit=COMMIT, domains=json.dumps(domains)))

    said = _run(tmp_path, ROOT / "jobs/pipeline.py", "--config", "run.yaml")
    assert "report" in said
    section = json.loads((tmp_path / "runs/run/mixse/config.json").read_text())["mixse"]
    assert (section["base_model"], section["base_revision"]) == (f"some-org/some-model@{COMMIT}", COMMIT)

    (tmp_path / "llm.py").write_text(LLM)
    said = _run(tmp_path, tmp_path / "llm.py")
    assert len(json.loads(said.partition("TEXTS ")[2].splitlines()[0])) == 3

    tasks = write_tiny_tasks(tmp_path / "tasks")
    said = _run(
        tmp_path, ROOT / "jobs/eval.py", "--run", "runs/run", "--tasks", "tiny_choice", "--task-files", str(tasks),
        "--systems", "base,mixse", "--traced-items", "0", "--max-model-len", "512",
    )  # fmt: skip
    assert "MiXSE" in said
    assert _answer_of_server(tmp_path)["choices"][0]["text"] is not None


def _environment(folder: Path) -> dict[str, str]:
    return os.environ | {
        "HF_HUB_CACHE": str(folder / "hub"),
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(folder / "modules"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }


def _run(folder: Path, *command: object) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=folder, env=_environment(folder), capture_output=True, text=True
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout


def _answer_of_server(folder: Path) -> dict[str, object]:
    config = ROOT / "serve_configs/mixse_local.yaml"
    port = 18080
    address = f"http://{read_config(str(config))['http_options']['host']}:{port}"
    command = [sys.executable, str(ROOT / "jobs/serve.py"), "--run", "runs/run", "--config", str(config)]
    with open(folder / "served", "w") as log:
        server = subprocess.Popen(
            [*command, "--port", str(port), "--verbose"], cwd=folder, env=_environment(folder), stdout=log, stderr=log
        )
    try:
        while "Ready." not in (folder / "served").read_text():
            assert server.poll() is None, (folder / "served").read_text()[-6000:]
            time.sleep(1)
        body = json.dumps({"model": "run/ant", "prompt": "ba da fa", "max_tokens": 4}).encode()
        request = urllib.request.Request(f"{address}/v1/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as response:
            return dict(json.load(response))
    finally:
        server.terminate()
        server.wait(timeout=120)
