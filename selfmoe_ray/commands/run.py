"""The command line that all jobs share. `--help` loads neither ray nor torch."""

from __future__ import annotations

import argparse
from typing import Any

from selfmoe_ray.commands.job import run_command
from selfmoe_ray.run.stages import STAGES


def main(argv: list[str] | None = None, until: str | None = None) -> None:
    """Run the pipeline up to and including a stage, then exit. until: fixes it; else the command line says it.

    Exit status and output: see `job.run_command`.
    """
    arguments = parser(until).parse_args(argv)
    run_command(lambda: _run(arguments))


def parser(until: str | None = None) -> argparse.ArgumentParser:
    """The command line; until: see `main`."""
    what = f"Run the stages up to {until!r}" if until else "Run all stages"
    parser = argparse.ArgumentParser(description=f"{what} of {', '.join(STAGES)}. What is done is skipped.")
    parser.set_defaults(until=until)
    if until is None:
        parser.add_argument("--until", choices=STAGES, help="the stage to stop after (default: the last)")
    parser.add_argument("--config", required=True, help="YAML file of settings (see jobs/configs)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one setting, e.g. run_name=first",
    )
    parser.add_argument("--redo", choices=STAGES, help="delete this stage's results and later ones, then run")
    parser.add_argument("--dry-run", action="store_true", help="check everything and say what would be done")
    parser.add_argument("--verbose", action="store_true", help="show the output of Ray's workers too")
    return parser


def _run(arguments: argparse.Namespace) -> dict[str, Any]:
    from selfmoe_ray.pipeline import run as pipeline
    from selfmoe_ray.run.config_file import load_config

    config = load_config(arguments.config, arguments.set)
    if arguments.dry_run:
        print(pipeline.describe(config, arguments.redo, arguments.until))
        return {"status": "dry-run"}
    run = pipeline.run(config, redo=arguments.redo, until=arguments.until, verbose=arguments.verbose)
    return {"status": "done", "run": run}
