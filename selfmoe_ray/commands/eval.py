"""The command line of evaluation. `--help` loads neither ray nor torch."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from selfmoe_ray.commands.job import run_command

if TYPE_CHECKING:
    from selfmoe_ray.evaluation.run import Options

SOURCE_OPTIONS = ("data_root", "task_files", "run_model_written_code", "fewshot_seed")
MERGE_OPTIONS = ("density", "weights", "rank")


def main(argv: list[str] | None = None) -> None:
    """Evaluate, print the main table, then exit as `job.run_command` does."""
    arguments = parser().parse_args(argv)
    run_command(lambda: _run(arguments))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Evaluate a run's systems through lm-eval. What is finished is skipped, what was begun goes on."
    )
    parser.add_argument("--run", required=True, metavar="DIR", help="a run with a finished mixture, a path or URI")
    parser.add_argument(
        "--systems",
        type=names,
        default="base,experts,mixse",
        help="of base, experts, expert-<name>, mixse, top<k>, all, uniform, random, ties, dare, and mixtures trained "
        "otherwise: instance, instance<percent>, joint, seeds, first<m>, data<percent> (%(default)s)",
    )
    parser.add_argument(
        "--redo",
        action="append",
        default=[],
        metavar="SYSTEM/BENCHMARK",
        help="evaluate it anew; merged or variants/<system> makes that anew too",
    )
    parser.add_argument(
        "--tasks",
        type=names,
        default="paper",
        help="lm-eval tasks; paper and full stand for the paper's benchmarks, in its sizes and whole (%(default)s)",
    )
    parser.add_argument("--draws", type=_positive, default=1, metavar="N", help="of few-shot examples (%(default)s)")
    add_options(parser)
    return parser


def add_options(parser: argparse.ArgumentParser) -> None:
    """All that does not say what is evaluated."""
    parser.add_argument("--verbose", action="store_true", help="show the output of Ray's workers too")
    parser.add_argument(
        "--exclude-leaked", action="store_true", help="print scores without the items that generated examples hold"
    )
    _add_task_options(parser.add_argument_group("benchmarks"))
    _add_engine_options(parser.add_argument_group("engines"))
    _add_merge_options(parser.add_argument_group("merged baselines", "how ties and dare are made of the experts"))


def _add_task_options(group: Any) -> None:
    group.add_argument("--limit", type=int, metavar="N", help="only the first N items of each task")
    group.add_argument("--num-fewshot", type=int, metavar="N", help="instead of each benchmark's own")
    group.add_argument("--fewshot-seed", type=int, default=1234, metavar="N", help="of the examples (%(default)s)")
    group.add_argument("--data-root", metavar="DIR", help="take datasets from this folder; nothing is downloaded then")
    group.add_argument("--task-files", metavar="DIR", help="a folder of further lm-eval task files")
    group.add_argument(
        "--run-model-written-code",
        action="store_true",
        help="allow benchmarks that run programs which the model wrote (humaneval, mbpp), in a sandbox on this machine",
    )


def _add_engine_options(group: Any) -> None:
    group.add_argument("--shard-size", type=_positive, default=256, metavar="N", help="items at a time (%(default)s)")
    group.add_argument(
        "--traced-items",
        type=int,
        default=8,
        metavar="N",
        help="of each benchmark, on which the routing of mixse is traced; 0 for none (%(default)s)",
    )
    group.add_argument("--dtype", choices=["float32", "bfloat16"], help="the run's own if not given")
    group.add_argument(
        "--max-model-len",
        type=_positive,
        default=4096,
        metavar="N",
        help="tokens of a prompt and its answer, no more than the model can; a prompt that is too long loses its "
        "beginning (%(default)s)",
    )


def _add_merge_options(group: Any) -> None:
    group.add_argument("--merge-density", type=float, default=0.5, metavar="D", help="share kept (%(default)s)")
    group.add_argument("--merge-weights", type=_numbers, default=(), metavar="W,W", help="1 for ties, 1/n for dare")
    group.add_argument("--merge-rank", type=_positive, metavar="R", help="the sum of the experts' if not given")


def names(text: str) -> list[str]:
    """The parts of a comma-separated list."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(text: str) -> list[float]:
    return [float(number) for number in text.split(",")]


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} given; it must be at least 1")
    return value


def _run(arguments: argparse.Namespace) -> dict[str, Any]:
    given = vars(arguments)
    excludes = given.pop("exclude_leaked")
    return {"status": "done", "run": evaluate_and_report(read_options(given), excludes)}


def evaluate_and_report(options: Options, exclude_leaked: bool) -> str:
    """`evaluate_run`, then the tables and the report of all that is evaluated; returns the run's folder.

    exclude_leaked: the printed table is without the items that generated examples hold.
    """
    from selfmoe_ray.evaluation.run import evaluate_run, open_run, read_mixture
    from selfmoe_ray.mixture.systems import system_order
    from selfmoe_ray.reporting.results import write_results

    folder = evaluate_run(options)
    run_dir, config = open_run(options.run)
    print(write_results(run_dir, config, system_order(read_mixture(run_dir)), exclude_leaked))
    return folder


def read_options(given: dict[str, Any]) -> Options:
    """What the command line asks for; given: the values of all options by name, which are used up."""
    # Read when these libraries are imported: progress is printed by shard, and a data root is all there is.
    os.environ.setdefault("TQDM_DISABLE", "1")
    if given["data_root"]:
        os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    from selfmoe_ray.config import parse
    from selfmoe_ray.evaluation.run import Options
    from selfmoe_ray.evaluation.tasks import TaskSource
    from selfmoe_ray.mixture.merging import MergeConfig

    source = TaskSource(**{name: given.pop(name) for name in SOURCE_OPTIONS})
    merge = parse(MergeConfig, {name: given.pop(f"merge_{name}") for name in MERGE_OPTIONS}, "--merge-*")
    return Options(**given, source=source, merge=merge)
