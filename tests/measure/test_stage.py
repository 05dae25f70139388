from selfmoe_ray.measure.stage import measure_product, measure_run
from selfmoe_ray.reporting.page import write_report

DOMAINS = ["math", "coding"]


def check_measured(config, run_dir, counts):
    storage = run_dir.storage
    samples = storage.read_table("measure/samples.parquet").to_pylist()
    assert len(samples) == 8 * 10
    table = storage.read_json("measure/nll.json")["row_sets"]
    assert list(table) == ["all", "held_out", "seeds"]
    systems = ["base", "expert-math", "expert-coding", "uniform", "random", "mixse", "oracle", "mixse-fitted"]
    assert list(table["seeds"]["systems"]) == systems
    assert table["seeds"]["systems"]["mixse-fitted"]["mean_nll"] != table["seeds"]["systems"]["mixse"]["mean_nll"]
    assert set(storage.read_json("measure/routing.json")["domains"]) == set(DOMAINS)
    traces = storage.read_json("measure/answer.json")
    assert [each["domain"] for each in traces["answers"]] == [each["domain"] for each in traces["passages"]] == DOMAINS
    assert "".join(token["text"] for token in traces["passages"][0]["tokens"]) == "answer 3"
    assert counts["parameters"]["base"] > 0 and counts["rows"] == {"held_out": 6, "seeds": 4} and counts["tokens"] > 0


def test_the_stage_writes_what_the_report_shows(config, run_dir):
    events = []
    counts = measure_run(
        config, DOMAINS, config.base_model, run_dir, lambda kind, **fields: events.append(fields), "cpu"
    )
    check_measured(config, run_dir, counts)
    product = measure_product(config, DOMAINS, run_dir)
    run_dir.write_manifest(run_dir.MEASURE, *product.made_with(run_dir), counts, 1.0)
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


def test_the_measure_depends_on_the_mixture_and_the_data(config, run_dir):
    product = measure_product(config, DOMAINS, run_dir)
    _, before = product.made_with(run_dir)
    run_dir.write_manifest(run_dir.MIXSE, {"rank": 2}, {}, {}, 1.0)
    _, inputs = product.made_with(run_dir)
    assert [folder for folder in inputs if inputs[folder] != before[folder]] == ["mixse"]
