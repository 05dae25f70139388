"""lm-eval's tasks, loaded unmodified from a data root or the hub, code tasks with the sandboxed metric."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfmoe_ray.base_model.cache import cached
from selfmoe_ray.errors import UserError, did_you_mean
from selfmoe_ray.evaluation import lm_eval_metrics
from selfmoe_ray.evaluation.benchmarks import Benchmark, preset

# What lm-eval takes where no seed is given.
FEWSHOT_SEED = 1234


@dataclass(frozen=True)
class TaskSource:
    """Where tasks and their data come from.

    data_root: a folder with a dataset at <path>/<config>, as `datasets` names it; None for the hub or its
    cache. task_files: a folder of further task files. fewshot_seed: of the examples in the prompts.
    """

    data_root: str | None = None
    task_files: str | None = None
    run_model_written_code: bool = False
    fewshot_seed: int = FEWSHOT_SEED


def task_manager(source: TaskSource, include_defaults: bool = True) -> Any:
    """lm-eval's index of tasks; include_defaults: with the thousands that it brings, which take seconds."""
    from lm_eval.tasks import TaskManager

    for flag, folder in (("--data-root", source.data_root), ("--task-files", source.task_files)):
        if folder and not Path(folder).is_dir():
            raise UserError(f"{flag}: {folder!r} is no folder")
    return TaskManager(include_path=source.task_files, include_defaults=include_defaults)


def check_names(benchmarks: Sequence[Benchmark], manager: Any) -> None:
    """Raises UserError for the first task that lm-eval does not know, with the nearest names."""
    ours = [benchmark.name for benchmark in preset("full")]
    for benchmark in benchmarks:
        if benchmark.task not in manager.task_index:
            papers = f"the paper's are {', '.join(ours)}"
            hint = did_you_mean(benchmark.task, [*ours, *manager.all_tasks], n=3, otherwise=papers)
            raise UserError(f"--tasks: no task {benchmark.task!r}; {hint}")


def load_task(task: str, source: TaskSource, manager: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The lm-eval tasks of a name, and the groups among them, by their names.

    Raises UserError where model-written code would have to run and was not allowed, or data is missing.
    """
    settings = list(_leaf_settings(task, manager))
    runs_code = any(each.get("unsafe_code") for each in settings)
    if runs_code and not source.run_model_written_code:
        raise UserError(
            f"--tasks: {task!r} runs Python programs that the model wrote. Give --run-model-written-code to "
            "allow it; they run in a sandbox without network, with limits, in a folder of their own"
        )
    if runs_code:
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"
    try:
        with _data_directory(source.data_root):
            loaded = manager.load([task])
    except (OSError, ValueError) as error:
        raise UserError(_missing_data(task, settings, source.data_root, error)) from error
    for each in loaded["tasks"].values():
        each.set_fewshot_seed(seed=source.fewshot_seed)
    return loaded["tasks"], loaded["groups"]


def _leaf_settings(name: str, manager: Any) -> Iterator[dict[str, Any]]:
    """The task files' contents of all tasks below a name; members that are no names are left out."""
    entry = manager.task_index.get(name)
    if entry is None:
        return
    if entry.kind.name == "GROUP":
        members = entry.cfg["task"]
    elif entry.kind.name == "TAG":
        members = sorted(entry.tags)
    else:
        yield entry.cfg
        return
    for member in members:
        yield from _leaf_settings(member if isinstance(member, str) else str(member.get("task")), manager)


@contextlib.contextmanager
def _data_directory(data_root: str | None) -> Iterator[None]:
    """Work in a folder where `datasets` and `evaluate` find the data root and the sandboxed metric.

    Both look for a name below the current directory before they ask a hub. The folder stays, as the
    cache of `datasets` knows data by its path.
    """
    metrics = Path(lm_eval_metrics.__file__).parent
    targets = [metrics / "code_eval"]
    if data_root:
        targets += sorted(Path(data_root).absolute().iterdir())
    key = hashlib.sha256("\n".join(map(str, targets)).encode()).hexdigest()[:16]

    def link(folder: Path) -> None:
        folder.mkdir()
        for target in targets:
            with contextlib.suppress(FileExistsError):
                (folder / target.name).symlink_to(target)

    with contextlib.chdir(cached(f"task_data/{key}", link)):
        yield


def _missing_data(task: str, settings: Sequence[dict[str, Any]], data_root: str | None, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    paths = sorted({str(each["dataset_path"]) for each in settings if each.get("dataset_path")})
    if data_root is None:
        return (
            f"--tasks: the data of {task!r} ({', '.join(paths)}) cannot be loaded: {reason}\n"
            "  without a network give a folder that has it: --data-root"
        )
    missing = [path for path in paths if not (Path(data_root) / path).is_dir()]
    wanted = f"wanted the folder {Path(data_root) / missing[0]}" if missing else f"looked in {data_root}"
    return f"--tasks: the data of {task!r} cannot be loaded: {wanted}: {reason}"
