"""A run that version 0.1.0 made before the package was arranged in rooms: found done, loaded, measured alike, served.

`made_by_0_1.tar.gz` holds the tiny base, the domains and the run as that version wrote them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from selfmoe_ray.base_model import load_tokenizer
from selfmoe_ray.measure.nll import batch_nll, make_batches
from selfmoe_ray.mixture.checkpoint import load_mixse
from selfmoe_ray.mixture.gate import Gate
from selfmoe_ray.run.records import Example
from selfmoe_ray.run.run_dir import RunDir
from selfmoe_ray.training.dataset import tokenize_all

ROOT = Path(__file__).parents[2]
ARCHIVE = Path(__file__).with_name("made_by_0_1.tar.gz")


@pytest.fixture
def before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the run was made in, with its base and domains; the current one, as its paths are relative."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    folder = tmp_path / "made_by_0_1"
    monkeypatch.chdir(folder)
    return folder


def test_it_is_found_done_and_nothing_of_it_is_written_anew(before: Path) -> None:
    stamps = {path: path.stat().st_mtime_ns for path in before.rglob("manifest.json")}
    assert len(stamps) == 8
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs/pipeline.py"), "--config", "run/run.yaml"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "to do: nothing, all is done" in done.stdout and "MiXSE was asked" in done.stdout
    assert stamps == {path: path.stat().st_mtime_ns for path in before.rglob("manifest.json")}


@pytest.mark.parametrize("system", ["base", "expert-law", "uniform", "mixse"])
def test_its_systems_score_what_was_measured_then(before: Path, system: str) -> None:
    run_dir = RunDir(".", "run")
    measured = {
        sample["row"]: sample["nll"]
        for sample in run_dir.storage.read_table("measure/samples.parquet").to_pylist()
        if sample["row_set"] == "seeds" and sample["system"] == system
    }
    seeds = [
        Example(f"{domain}/unseen-seed/{number}", domain, seed.instruction, seed.input, seed.output)
        for domain in ("law", "poetry")
        for number, seed in enumerate(run_dir.read_seeds(domain, held_out=True))
    ]
    model = load_mixse(before / "run/mixse")
    tokenizer = load_tokenizer(str(before / "run/mixse"))
    gates = {"base": Gate.off(), "expert-law": Gate.expert(0), "uniform": Gate.uniform(), "mixse": model.default_gate}
    batches = make_batches("seeds", tokenize_all(seeds, tokenizer, 448).rows, tokenizer.pad_token_id, 2048)
    found = {
        row.id: nll
        for batch in batches
        for row, nll in zip(batch.rows, batch_nll(model, batch, gates[system]), strict=True)
    }
    assert found == pytest.approx(measured, abs=1e-5) and len(found) == 4


@pytest.mark.serving
def test_vllm_loads_and_answers_with_it(before: Path, cpu_engines: None) -> None:
    script = (
        "import json, sys\nfrom vllm import LLM, SamplingParams\n"
        "llm = LLM('run/mixse', enforce_eager=True, max_model_len=256, dtype='float32')\n"
        "params = [SamplingParams(temperature=0, max_tokens=4, extra_args={'mixse_gate': gate}) for gate in "
        "('base', 'law', 'router')]\n"
        "outputs = llm.generate(['Count alder brook cedar.'] * 3, params, use_tqdm=False)\n"
        "print('IDS', json.dumps([list(output.outputs[0].token_ids) for output in outputs]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    line = next((line for line in done.stdout.splitlines() if line.startswith("IDS ")), None)
    assert line, done.stderr[-3000:]
    model, tokenizer = load_mixse(before / "run/mixse"), load_tokenizer(str(before / "run/mixse"))
    inputs = tokenizer("Count alder brook cedar.", return_tensors="pt")
    for gate, ids in zip((Gate.off(), Gate.expert(0), None), json.loads(line.removeprefix("IDS ")), strict=True):
        wanted = model.generate(**inputs, gate=gate, max_new_tokens=4, do_sample=False)[0, inputs.input_ids.shape[1] :]
        assert ids == wanted.tolist()
