"""The command line of evaluation. `--help` loads neither ray nor torch."""

from __future__ import annotations

import argparse
import os
from typing import Any

from selfmoe_ray.command import run_command

MAX_MODEL_LEN = 4096
SHARD_SIZE = 256
SOURCE_OPTIONS = ("data_root", "task_files", "run_model_written_code", "fewshot_seed")


def main(argv: list[str] | None = None) -> None:
    """Evaluate, print the main table, then exit as `command.run_command` does."""
    arguments = parser().parse_args(argv)
    run_command(lambda: _run(arguments))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Evaluate a run's systems through lm-eval; what is finished is skipped, what was begun goes on."
    )
    parser.add_argument("--run", required=True, metavar="DIR", help="a run with a finished mixture, a path or URI")
    parser.add_argument(
        "--systems",
        default="base,experts,mixse",
        help="of base, experts, expert-<name>, mixse, top<k>, all, uniform (%(default)s)",
    )
    parser.add_argument(
        "--tasks",
        default="paper",
        help="lm-eval tasks; paper and full stand for the paper's benchmarks, in its sizes and whole (%(default)s)",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N items of each task")
    parser.add_argument("--num-fewshot", type=int, metavar="N", help="instead of each benchmark's own")
    parser.add_argument("--fewshot-seed", type=int, default=1234, help="of the examples in prompts (%(default)s)")
    parser.add_argument("--data-root", metavar="DIR", help="datasets below this folder instead of the hub's")
    parser.add_argument("--task-files", metavar="DIR", help="a folder of further lm-eval task files")
    parser.add_argument(
        "--run-model-written-code",
        action="store_true",
        help="allow benchmarks that run programs which the model wrote (humaneval, mbpp), in a sandbox here",
    )
    parser.add_argument("--shard-size", type=_positive, default=SHARD_SIZE, metavar="N", help="items (%(default)s)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="of the engines; the run's own if not given")
    parser.add_argument(
        "--max-model-len",
        type=_positive,
        default=MAX_MODEL_LEN,
        metavar="N",
        help="tokens of a prompt and its answer, at most what the model can; longer prompts lose their beginning "
        "(%(default)s)",
    )
    parser.add_argument("--redo", action="append", default=[], metavar="SYSTEM/BENCHMARK", help="evaluate this anew")
    parser.add_argument("--verbose", action="store_true", help="show the output of Ray's workers too")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} given; it must be at least 1")
    return value


def _run(arguments: argparse.Namespace) -> dict[str, Any]:
    # Read when these libraries are imported: progress is printed by shard, and a data root is all there is.
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if arguments.data_root:
        os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    from selfmoe_ray.evaluation.ray_job import Options, evaluate_run
    from selfmoe_ray.evaluation.tasks import TaskSource

    given = {key: value for key, value in vars(arguments).items() if key not in SOURCE_OPTIONS}
    source = TaskSource(**{key: getattr(arguments, key) for key in SOURCE_OPTIONS})
    lists = {key: [name.strip() for name in given[key].split(",") if name.strip()] for key in ("systems", "tasks")}
    return {"status": "done", "run": evaluate_run(Options(**{**given, **lists}, source=source))}
