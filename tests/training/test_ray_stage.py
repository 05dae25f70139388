"""Training as a run does it: Ray Train, DeepSpeed, checkpoints in the run directory."""

import random
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from selfmoe_ray.base_model import resolve
from selfmoe_ray.config import parse_config
from selfmoe_ray.errors import UserError
from selfmoe_ray.evaluation.ray_variants import variant_stages
from selfmoe_ray.evaluation.variants import find_variant
from selfmoe_ray.mixture.checkpoint import read_spec
from selfmoe_ray.run.records import Example, Seed
from selfmoe_ray.run.run_dir import RunDir
from selfmoe_ray.run.stages import Stage, run_stage
from selfmoe_ray.training.ray_stage import train_experts, train_router
from selfmoe_ray.training.stage import expert_products, router_product
from tests.living import find_named

WORDS = ["train", "France", "Paris", "capital", "numbers", "hours", "Python", "function", "sum", "return"]
ROWS = {"ant": 40, "bee": 16}
# By the third checkpoint Ray has recorded the first.
CHECKPOINT_EVERY = 4
STOP_AT_STEP = 3 * CHECKPOINT_EVERY + 1


@pytest.fixture(scope="module")
def ray_cluster():
    import os

    import ray

    # A busy machine takes longer than Ray's 30 seconds.
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def start(tiny_model_dir, tmp_path_factory):
    """`start(name, **resources)`: arguments of the stages for a run with generated rows."""
    root = tmp_path_factory.mktemp("runs")

    def begin(name: str, **fields):
        config = parse_config(
            {
                "root": str(root),
                "run_name": name,
                "base_model": str(tiny_model_dir()),
                "domains": list(ROWS),
                "mixture": {"rank": 4},
                "training": {
                    "dtype": "float32",
                    "max_length": 256,
                    "sources": ["synthetic", "seeds"],
                    "experts": {"batch_size": 4, "epochs": 4, "learning_rate": 3e-3},
                    "router": {"batch_size": 8, "epochs": 1, "fit_tokens": 2000},
                },
                "resources": {"training": {"cpus_per_worker": 1, "checkpoint_every_steps": CHECKPOINT_EVERY, **fields}},
            }
        )
        run_dir = RunDir(config.root, config.run_name)
        seeds = (Seed("Name a train.", "", "Paris"),)
        for domain, count in ROWS.items():
            draw = random.Random(domain)
            examples = [
                Example(f"{domain}/0/0/{row}", domain, "Say it.", "", " ".join(draw.choices(WORDS, k=6)))
                for row in range(count)
            ]
            run_dir.write_examples(domain, examples, [])
            run_dir.write_seeds(domain, list(seeds), [])
            run_dir.write_manifest(run_dir.data(domain), {}, {}, {}, 0.0)
        return config, list(ROWS), resolve(config.base_model), run_dir

    return begin


def expert_weights(run_dir: RunDir):
    return {
        f"{domain}/{name}": value
        for domain in ROWS
        for name, value in load_file(
            run_dir.storage.path(f"{run_dir.expert(domain)}/adapter_model.safetensors")
        ).items()
    }


def run_experts(config, domains, base, run_dir, emit) -> None:
    products = expert_products(config, domains, base, run_dir)
    run_stage(
        Stage("experts", products, lambda todo: train_experts(config, domains, todo, base, run_dir, emit)), run_dir
    )


def largest_difference(one, other) -> float:
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


class Events:
    """An Emit that keeps what it gets, and runs a hook on it."""

    def __init__(self, hook=lambda fields: None):
        self.seen = []
        self.hook = hook

    def __call__(self, kind, **fields):
        self.seen.append({"kind": kind, **fields})
        self.hook(fields)

    def messages(self) -> str:
        return " | ".join(event.get("message", "") for event in self.seen)


@pytest.fixture(scope="module")
def fused(ray_cluster, start):
    """All experts by one undisturbed worker: arguments, weights and events."""
    arguments = start("fused")
    events = Events()
    run_experts(*arguments, events)
    return arguments, expert_weights(arguments[3]), events


@pytest.mark.slow
def test_a_fused_trainer_reports_and_writes_all_experts(fused):
    arguments, _, events = fused
    run_dir = arguments[3]
    assert {event["kind"] for event in events.seen} == {"experts"}
    steps = [event["step"] for event in events.seen if "step" in event]
    assert steps == [f"{step}/{len(steps)}" for step in range(1, len(steps) + 1)]
    metrics = run_dir.storage.read_jsonl(f"{run_dir.expert('ant')}/metrics.jsonl")
    assert metrics[-1]["epoch"] == 4 and metrics[-1]["loss"] < metrics[0]["loss"]
    assert run_dir.read_manifest(run_dir.expert("bee"))["counts"]["rows"] == ROWS["bee"] - 2 + 1
    assert not list((Path(run_dir.storage.root) / "checkpoints").iterdir())


@pytest.mark.slow
def test_finished_experts_are_kept_and_other_settings_refused(fused):
    (config, *others), _, _ = fused
    again = Events()
    run_experts(config, *others, again)
    assert again.seen == []
    with pytest.raises(UserError, match=r"(?s)seed = 0.*--redo experts"):
        run_experts(config.model_copy(update={"seed": 5}), *others, Events())


@pytest.mark.slow
def test_one_trainer_an_expert_gives_the_same_experts(fused, start):
    separate = start("separate", experts_per_trainer=1, zero_stage=0)
    run_experts(*separate, Events())
    assert largest_difference(expert_weights(separate[3]), fused[1]) < 1e-3


@pytest.mark.slow
def test_a_killed_worker_goes_on_from_its_checkpoint(fused, start):
    killed = start("killed", workers_per_trainer=2, zero_stage=3)
    events = Events(_kill_a_worker_once())
    run_experts(*killed, events)
    assert "continues after step" in events.messages()
    assert largest_difference(expert_weights(killed[3]), fused[1]) < 1e-3


@pytest.mark.slow
def test_a_stopped_job_goes_on_where_it_was(fused, start):
    def stop(fields):
        if _step(fields) >= STOP_AT_STEP:
            raise KeyboardInterrupt

    stopped = start("stopped")
    with pytest.raises(KeyboardInterrupt):
        run_experts(*stopped, Events(stop))
    assert stopped[3].read_manifest("experts/ant") is None
    events = Events()
    run_experts(*stopped, events)
    assert "continues after step" in events.messages()
    assert largest_difference(expert_weights(stopped[3]), fused[1]) < 1e-6


@pytest.mark.slow
def test_the_router_starts_from_the_labels_and_learns(fused):
    arguments, experts, _ = fused
    events = Events()
    config, domains, base, run_dir = arguments
    product = router_product(config, domains, base, run_dir)
    run_stage(
        Stage("router", [product], lambda todo: train_router(config, domains, todo, base, run_dir, events)), run_dir
    )
    assert "fitted to the domain labels" in events.messages() and "router" in events.messages()
    fitted, trained = (
        load_file(run_dir.storage.path(f"router/{folder}router.safetensors")) for folder in ("fitted/", "")
    )
    assert 0 < largest_difference(fitted, trained) < 0.1
    fit = run_dir.storage.read_json("router/fitted/fit.json")
    assert fit["train_tokens"] > 0 and run_dir.read_manifest("router")["counts"]["tokens"] > 0
    assert largest_difference(expert_weights(run_dir), experts) == 0


def run_variants(pairs, domains, base, emit) -> None:
    for variant, folder in pairs:
        for stage in variant_stages(variant, domains, base, folder, emit):
            run_stage(stage, folder)


@pytest.mark.serving
def test_variants_are_trained_once_beside_the_run(fused):
    (config, domains, base, run_dir), experts, _ = fused
    variants = [find_variant(name, config, list(ROWS)) for name in ("joint", "instance")]
    pairs = [(variant, variant.folder(run_dir)) for variant in variants]
    run_variants(pairs, domains, base, Events())
    for (variant, folder), names in zip(pairs, (ROWS, ["instance"]), strict=True):
        with run_dir.storage.local_folder_to_read(folder.MIXSE) as mixse:
            assert read_spec(mixse).experts == tuple(names)
        metrics = run_dir.storage.read_jsonl(f"{folder.ROUTER}/metrics.jsonl")
        assert metrics[-1]["epoch"] == 4 and metrics[-1]["loss"] < metrics[0]["loss"], variant.name
        assert not run_dir.storage.list_folders(f"{folder.folder}/checkpoints")
    moved = [
        load_file(run_dir.storage.path(f"variants/joint/experts/{name}/adapter_model.safetensors")) for name in ROWS
    ]
    assert all(weights["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"].any() for weights in moved)
    assert largest_difference(expert_weights(run_dir), experts) == 0
    again = Events()
    run_variants(pairs, domains, base, again)
    assert again.seen == []
    run_dir.write_manifest("data/ant", {"other": 1}, {}, {}, 0.0)
    try:
        with pytest.raises(UserError, match=r"(?s)data/ant.*--redo variants/joint"):
            run_variants(pairs, domains, base, again)
    finally:
        run_dir.write_manifest("data/ant", {}, {}, {}, 0.0)


def _step(fields) -> int:
    return int(str(fields.get("step", "0/0")).split("/")[0])


def _kill_a_worker_once():
    killed = []

    def hook(fields):
        if not killed and _step(fields) >= STOP_AT_STEP:
            worker = find_named("RayTrainWorker", psutil.Process().children(recursive=True))[0]
            killed.append(worker.pid)
            worker.kill()

    return hook
