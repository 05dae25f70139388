"""The command line of the studies. `--help` loads neither ray nor torch."""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from selfmoe_ray.commands.eval import add_options, evaluate_and_report, names, read_options
from selfmoe_ray.commands.job import run_command
from selfmoe_ray.errors import UserError

if TYPE_CHECKING:
    from selfmoe_ray.config import RunConfig
    from selfmoe_ray.evaluation.run import Options
    from selfmoe_ray.evaluation.studies import Evaluations
    from selfmoe_ray.mixture.spec import MixtureSpec
    from selfmoe_ray.run.run_dir import RunDir

OWN_OPTIONS = ("study", "percents", "runs", "base_models", "dry_run", "tasks", "draws", "exclude_leaked")


def main(argv: list[str] | None = None) -> None:
    """Run studies, then exit as `job.run_command` does."""
    arguments = parser().parse_args(argv)
    run_command(lambda: _run(vars(arguments)))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Train and evaluate what tables and figures of the paper compare, on a run of your own, and write "
        "its report. What is finished is skipped, what was begun goes on."
    )
    parser.add_argument(
        "--study", type=names, required=True, help="table1 to table4, table8, fig3, fig4, fig5, validity, all"
    )
    parser.add_argument("--run", required=True, metavar="DIR", help="a run with a finished mixture, a path or URI")
    parser.add_argument("--tasks", type=names, default=[], help="lm-eval tasks instead of each study's own")
    parser.add_argument("--draws", type=int, default=3, metavar="N", help="of validity (%(default)s)")
    parser.add_argument("--percents", type=_percents, default=[25, 50, 75], help="of the data, for fig5 (25,50,75)")
    parser.add_argument("--runs", type=names, default=[], metavar="DIR,DIR", help="runs of other base models, for fig4")
    parser.add_argument(
        "--base-models",
        type=names,
        default=[],
        metavar="BASE,BASE",
        help="for fig4: make a run of each, with this run's config, beside it",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be trained and evaluated")
    add_options(parser)
    return parser


def _percents(text: str) -> list[int]:
    return [int(number) for number in names(text)]


def _run(given: dict[str, Any]) -> dict[str, Any]:
    own = {name: given.pop(name) for name in OWN_OPTIONS}
    options = read_options({**given, "systems": [], "tasks": own["tasks"]})
    from selfmoe_ray.evaluation.run import open_run, read_mixture
    from selfmoe_ray.evaluation.studies import FIG4, plan_studies, select_studies

    studies = select_studies(own["study"])
    run_dir, config = open_run(options.run)
    spec = read_mixture(run_dir)
    plan = plan_studies(studies, spec.experts, own["tasks"], own["draws"], own["percents"])
    compares = FIG4 in studies and (own["runs"] or own["base_models"])
    if FIG4 in own["study"] and not compares:
        raise UserError("--study fig4: other base models are missing; give --runs or --base-models")
    if own["dry_run"]:
        print("\n".join([*_describe(plan, run_dir, config, spec), *_describe_others(own if compares else {})]))
        return {"status": "dry-run"}
    for each in plan:
        evaluate_and_report(
            replace(options, systems=each.systems, tasks=each.tasks, draws=each.draws), own["exclude_leaked"]
        )
    if compares:
        _compare_bases(options, own)
    return {"status": "done", "run": run_dir.storage.path()}


def _describe(plan: list[Evaluations], run_dir: RunDir, config: RunConfig, spec: MixtureSpec) -> list[str]:
    from selfmoe_ray.evaluation.systems import select_systems

    lines = []
    for each in plan:
        systems = select_systems(each.systems, spec, config)
        draws = f", {each.draws} draws" if each.draws > 1 else ""
        lines.append(f"evaluate on {', '.join(each.tasks)}{draws}: {', '.join(systems)}")
        for name, system in systems.items():
            state = "trained" if run_dir.read_manifest(system.mixture) else "to train"
            if system.variant and (line := f"  {name}: {state}, {system.variant.trains}") not in lines:
                lines.append(line)
    return lines


def _describe_others(own: dict[str, Any]) -> list[str]:
    runs = [f"evaluate base and mixse of {run}" for run in own.get("runs", ())]
    return [*runs, *(f"make a run of {base} and evaluate it" for base in own.get("base_models", ()))]


def _compare_bases(options: Options, own: dict[str, Any]) -> None:
    """Fig. 4: this run and the others, each with its base."""
    from selfmoe_ray.evaluation.bases import compare_bases
    from selfmoe_ray.evaluation.run import open_run
    from selfmoe_ray.evaluation.studies import FIG4, plan_studies
    from selfmoe_ray.pipeline import run as pipeline
    from selfmoe_ray.reporting.results import write_bases

    run_dir, config = open_run(options.run)
    root = options.run.rstrip("/").rpartition("/")[0] or "."
    others = list(own["runs"])
    for base in own["base_models"]:
        name = f"{run_dir.run_name}-{re.sub(r'[^A-Za-z0-9._-]+', '-', base).strip('-')}"
        changes = {"base_model": base, "run_name": name, "root": root}
        others.append(pipeline.run(config.model_copy(update=changes), verbose=options.verbose))
    (each,) = plan_studies([FIG4], ["any"], own["tasks"], 1, ())
    for other in others:
        evaluate_and_report(replace(options, run=other, systems=each.systems, tasks=each.tasks), own["exclude_leaked"])
    opened = [(run_dir, config), *map(open_run, others)]
    rows = compare_bases([(of_run.base_model, folder) for folder, of_run in opened], config.seed)
    print(write_bases(run_dir, config, rows))
