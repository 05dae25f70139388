import json

import pytest
import ray

from selfmoe_ray.base_model import resolve
from selfmoe_ray.measure.ray_stage import measure
from selfmoe_ray.measure.stage import measure_product
from selfmoe_ray.run.stages import Stage, begin, run_stage

DOMAINS = ["math", "coding"]


@pytest.mark.slow
def test_a_ray_task_measures_and_streams(config, run_dir):
    events = []
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        base = resolve(config.base_model)
        making = measure(config, DOMAINS, base, run_dir, lambda kind, **fields: events.append((kind, fields)))
        product = measure_product(config, DOMAINS, run_dir)
        run_stage(Stage("measure", [product], lambda _: making), run_dir)
    finally:
        ray.shutdown()
    assert begin([product], run_dir) == []
    assert run_dir.read_manifest("measure")["counts"]["rows"] == {"held_out": 6, "seeds": 4}
    assert {kind for kind, _ in events} == {"measure"}
    assert {fields["system"] for _, fields in events if "system" in fields} > {"base", "mixse"}
    assert json.dumps(events)
