"""The measure stage: a run's finished mixture on rows that no stage trained on, on one device. No Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from selfmoe_ray.base_model import load_tokenizer
from selfmoe_ray.config import RunConfig
from selfmoe_ray.domains.prompt import format_prompt
from selfmoe_ray.domains.rows import unseen_examples
from selfmoe_ray.run.events import Emit
from selfmoe_ray.run.records import Example
from selfmoe_ray.run.run_dir import RunDir
from selfmoe_ray.run.stages import Product
from selfmoe_ray.training.dataset import TokenizedRow, tokenize_all

if TYPE_CHECKING:
    from selfmoe_ray.measure.nll import Batch
    from selfmoe_ray.measure.routing_statistics import RoutingStatistics
    from selfmoe_ray.measure.scores import Sample
    from selfmoe_ray.mixture.model import MixtureModel

# The logits of a batch are at most this many tokens times the vocabulary.
MAX_TOKENS_PER_BATCH = 2048
# Traces of the report: the first unseen row of each domain, human-written before generated.
TRACED = ("seeds", "held_out")


def measure_product(config: RunConfig, domains: Sequence[str], run_dir: RunDir) -> Product:
    """The folder `measure/`; domains are names."""
    settings = {
        "measure": config.measure.model_dump(),
        "max_length": config.training.max_length,
        "dtype": config.training.dtype,
        "seed": config.seed,
    }
    return Product(run_dir.MEASURE, settings, (run_dir.MIXSE, *map(run_dir.data, domains)), run_dir.redo("measure"))


def measure_run(
    config: RunConfig, domains: Sequence[str], base_model: str, run_dir: RunDir, emit: Emit, device: str
) -> dict[str, Any]:
    """Measure `mixse/` on one device and write `measure/`; returns the counts of what was measured.

    base_model: the config value that the mixture's base resolves from on this machine.
    Raises UserError where no domain has an unseen row.
    """
    from selfmoe_ray.measure.scores import score_fitted_router, score_systems
    from selfmoe_ray.mixture.checkpoint import load_mixse
    from selfmoe_ray.mixture.parameters import count_parameters

    emit("measure", message="loading the mixture", device=device)
    with run_dir.storage.local_folder_to_read(run_dir.MIXSE) as folder:
        model = load_mixse(folder, config.training.dtype, device, base_model, config.trust_remote_code)
        tokenizer = load_tokenizer(str(folder), config.trust_remote_code)
    examples = unseen_examples(config, domains, run_dir)
    rows = {name: _tokenize(config, domains, of_set, tokenizer) for name, of_set in examples.items()}
    batches = _batches(rows, tokenizer, device)
    samples, routing = score_systems(model, batches, list(domains), emit)
    with run_dir.storage.local_folder_to_read(run_dir.ROUTER) as folder:
        samples += score_fitted_router(model, batches, folder, emit)
    _write_scores(run_dir, samples, list(domains))
    _write_routing(run_dir, routing, emit)
    _write_traces(config, run_dir, model, tokenizer, examples, rows)
    return {
        "parameters": asdict(count_parameters(model)),
        "rows": {row_set: len(of_set) for row_set, of_set in rows.items()},
        "tokens": len({sample.system for sample in samples}) * _tokens(batches),
    }


def _tokenize(
    config: RunConfig, domains: Sequence[str], examples: Sequence[Example], tokenizer: Any
) -> list[TokenizedRow]:
    of_domain = ([example for example in examples if example.domain == domain] for domain in domains)
    return [row for each in of_domain for row in tokenize_all(each, tokenizer, config.training.max_length).rows]


def _batches(rows: Mapping[str, Sequence[TokenizedRow]], tokenizer: Any, device: str) -> list[Batch]:
    from selfmoe_ray.measure.nll import make_batches

    return [
        batch
        for row_set, of_set in rows.items()
        for batch in make_batches(row_set, of_set, tokenizer.pad_token_id, MAX_TOKENS_PER_BATCH, device)
    ]


def _tokens(batches: Sequence[Batch]) -> int:
    return sum(len(row.input_ids) for batch in batches for row in batch.rows)


def _write_scores(run_dir: RunDir, samples: list[Sample], domains: list[str]) -> None:
    import pyarrow as pa

    from selfmoe_ray.measure.scores import summarise

    table = pa.Table.from_pylist([asdict(sample) for sample in samples])
    run_dir.storage.write_table(f"{run_dir.MEASURE}/samples.parquet", table)
    run_dir.storage.write_json(f"{run_dir.MEASURE}/nll.json", summarise(samples, domains))


def _write_routing(run_dir: RunDir, routing: dict[str, RoutingStatistics], emit: Emit) -> None:
    row_set, statistics = next(iter(routing.items()))
    summary = {"row_set": row_set, **statistics.summary()}
    run_dir.storage.write_json(f"{run_dir.MEASURE}/routing.json", summary)
    collapse = summary["collapse"]
    if collapse:
        emit(
            "measure",
            message=f"WARNING: THE ROUTER HAS COLLAPSED: at least {collapse['share']:.0%} of every domain's "
            f"tokens go to expert {collapse['expert']}",
        )


def _write_traces(
    config: RunConfig,
    run_dir: RunDir,
    model: MixtureModel,
    tokenizer: Any,
    examples: dict[str, list[Example]],
    rows: dict[str, list[TokenizedRow]],
) -> None:
    """`answer.json`: MiXSE's greedy answer to one unseen task of each domain, and the references traced."""
    from selfmoe_ray.measure.passages import answer, passage

    by_id = {example.id: example for of_set in examples.values() for example in of_set}
    chosen: dict[str, TokenizedRow] = {}
    for row_set in TRACED:
        for row in rows.get(row_set, []):
            chosen.setdefault(row.domain, row)
    tasks = [by_id[row.id] for row in chosen.values()]
    prompts = [format_prompt(task.instruction, task.input) for task in tasks]
    answers = answer(model, tokenizer, prompts, config.measure.answer_tokens)
    run_dir.storage.write_json(
        f"{run_dir.MEASURE}/answer.json",
        {
            "experts": model.spec.experts,
            "answers": [
                {
                    "domain": task.domain,
                    "row": task.id,
                    "instruction": task.instruction,
                    "input": task.input,
                    **found,
                }
                for task, found in zip(tasks, answers, strict=True)
            ],
            "passages": [passage(model, tokenizer, row) for row in chosen.values()],
        },
    )
