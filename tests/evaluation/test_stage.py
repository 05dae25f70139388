import json

import pytest
import torch

from selfmoe_ray.base_model import load_tokenizer, resolve
from selfmoe_ray.config import parse_config
from selfmoe_ray.domains.domain import Domain
from selfmoe_ray.errors import UserError
from selfmoe_ray.evaluation.ray_measure import measure
from selfmoe_ray.evaluation.stage import expected_manifest, measure_run, unseen_examples
from selfmoe_ray.mixture.checkpoint import save_mixse, save_router
from selfmoe_ray.mixture.model import attach
from selfmoe_ray.mixture.spec import MixtureSpec
from selfmoe_ray.records import Example, Seed
from selfmoe_ray.reporting.page import write_report
from selfmoe_ray.run_dir import RunDir

DOMAINS = ["math", "coding"]


@pytest.fixture
def config(tmp_path, tiny_model_dir):
    return parse_config({
        "root": str(tmp_path),
        "base_model": str(tiny_model_dir()),
        "domains": DOMAINS,
        "training": {"dtype": "float32", "max_length": 256},
        "measure": {"held_out_fraction": 0.3, "max_rows_per_domain": 3, "answer_tokens": 8},
    })  # fmt: skip


@pytest.fixture
def run_dir(config):
    """A run up to its mixture, whose experts and router are random; the router was fitted before."""
    from transformers import AutoModelForCausalLM

    run_dir = RunDir(config.root, config.run_name)
    for domain in DOMAINS:
        examples = [
            Example(f"{domain}/000/0000/{row:04d}", domain, f"Task {row}", "", "Paris is far, " * (row + 1))
            for row in range(10)
        ]
        seeds = [Seed(f"Seed {row}", "with input", f"answer {row}") for row in range(5)]
        run_dir.write_examples(domain, examples, [])
        run_dir.write_seeds(domain, used=seeds[:3], held_out=seeds[3:])
        run_dir.write_manifest(run_dir.data(domain), {}, {}, {"examples": 10}, 1.0)
    base = resolve(config.base_model)
    spec = MixtureSpec.uniform(DOMAINS, config.mixture, base.value, base.content_hash)
    model = attach(AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32), spec)
    generator = torch.Generator().manual_seed(0)
    with run_dir.storage.local_folder_to_write(run_dir.ROUTER) as folder:
        save_router(model, folder / "fitted")
    with torch.no_grad():
        for parameter in [
            *model.expert_parameters(0),
            *model.expert_parameters(1),
            *model.router_parameters(),
        ]:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    with run_dir.storage.local_folder_to_write(run_dir.MIXSE) as folder:
        save_mixse(model, folder, base)
    run_dir.write_manifest(run_dir.MIXSE, {}, {}, {}, 1.0)
    return run_dir


def test_rows_are_those_held_out_and_the_seeds_not_shown(config, run_dir):
    found = unseen_examples(config, DOMAINS, run_dir)
    assert {row_set: len(examples) for row_set, examples in found.items()} == {"held_out": 6, "seeds": 4}
    assert {example.instruction for example in found["seeds"]} == {"Seed 3", "Seed 4"}


def test_a_run_without_unseen_rows_is_refused(config, run_dir):
    for domain in DOMAINS:
        run_dir.write_seeds(domain, run_dir.read_seeds(domain, held_out=False), [])
        run_dir.write_examples(domain, run_dir.read_examples(domain)[:1], [])
    with pytest.raises(UserError, match="no row is left"):
        unseen_examples(config, DOMAINS, run_dir)


def check_measured(config, run_dir):
    storage = run_dir.storage
    assert run_dir.is_done("measure", *expected_manifest(config, DOMAINS, run_dir), redo="measure")
    samples = storage.read_table("measure/samples.parquet").to_pylist()
    assert len(samples) == 8 * 10
    table = storage.read_json("measure/nll.json")["row_sets"]
    assert set(table) == {"held_out", "seeds"}
    systems = ["base", "expert-math", "expert-coding", "uniform", "random", "mixse", "oracle", "mixse-fitted"]
    assert list(table["seeds"]["systems"]) == systems
    assert (
        table["seeds"]["systems"]["mixse-fitted"]["mean_nll"]
        != table["seeds"]["systems"]["mixse"]["mean_nll"]
    )
    assert set(storage.read_json("measure/routing.json")["domains"]) == set(DOMAINS)
    traces = storage.read_json("measure/answer.json")
    assert (
        [each["domain"] for each in traces["answers"]]
        == [each["domain"] for each in traces["passages"]]
        == DOMAINS
    )
    assert "".join(token["text"] for token in traces["passages"][0]["tokens"]) == "answer 3"
    assert run_dir.read_manifest("measure")["counts"]["parameters"]["base"] > 0


def test_the_stage_writes_what_the_report_shows(config, run_dir):
    events = []
    measure_run(
        config, DOMAINS, config.base_model, run_dir, lambda kind, **fields: events.append(fields), "cpu"
    )
    check_measured(config, run_dir)
    assert [fields["system"] for fields in events if "system" in fields][-1] == "mixse-fitted"
    write_report(config, run_dir)
    page = run_dir.storage.read_bytes("report/index.html").decode()
    assert "MiXSE&#39;s mean response NLL" in page
    assert "router only fitted to labels" in page


def test_the_router_is_measured_as_trained(config, run_dir):
    """The fitted router is scored last and must not leak into the traces."""
    measure_run(config, DOMAINS, config.base_model, run_dir, lambda kind, **fields: None, "cpu")
    with_fitted = run_dir.storage.read_json("measure/answer.json")
    run_dir.storage.delete("router/fitted")
    measure_run(config, DOMAINS, config.base_model, run_dir, lambda kind, **fields: None, "cpu")
    assert run_dir.storage.read_json("measure/answer.json") == with_fitted


@pytest.mark.slow
def test_a_ray_task_measures_and_streams(config, run_dir):
    import ray

    domains = [Domain(name, "", (), "", "free", (Seed("a", "", "b"),)) for name in DOMAINS]
    events = []
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        base = resolve(config.base_model)
        measure(config, domains, base, run_dir, lambda kind, **fields: events.append((kind, fields)))
    finally:
        ray.shutdown()
    check_measured(config, run_dir)
    assert {kind for kind, _ in events} == {"measure"}
    assert json.dumps(events)
    assert load_tokenizer(run_dir.storage.path("mixse")).pad_token
