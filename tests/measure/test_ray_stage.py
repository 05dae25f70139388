import json

import pytest
import ray

from selfmoe_ray.base_model import resolve
from selfmoe_ray.domains.domain import Domain
from selfmoe_ray.measure.ray_stage import measure
from selfmoe_ray.measure.stage import expected_manifest
from selfmoe_ray.run.records import Seed

DOMAINS = ["math", "coding"]


@pytest.mark.slow
def test_a_ray_task_measures_and_streams(config, run_dir):
    domains = [Domain(name, "", (), "", "free", (Seed("a", "", "b"),)) for name in DOMAINS]
    events = []
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        base = resolve(config.base_model)
        measure(config, domains, base, run_dir, lambda kind, **fields: events.append((kind, fields)))
    finally:
        ray.shutdown()
    assert run_dir.is_done("measure", *expected_manifest(config, DOMAINS, run_dir), redo="measure")
    assert {kind for kind, _ in events} == {"measure"}
    assert {fields["system"] for _, fields in events if "system" in fields} > {"base", "mixse"}
    assert json.dumps(events)
