"""The command line that all jobs share. `--help` loads neither ray nor torch."""

from __future__ import annotations

import argparse
from typing import Any

from selfmoe_ray.commands.job import run_command

STAGES = ("generate", "experts", "router", "mixse", "measure", "report")


def main(last: str | None = None, argv: list[str] | None = None) -> None:
    """Run the pipeline up to and including the stage `last` (default: all of it), then exit.

    Exit status and output: see `job.run_command`.
    """
    arguments = _parser(last).parse_args(argv)
    run_command(lambda: _run(arguments, last))


def _parser(last: str | None) -> argparse.ArgumentParser:
    what = f"Run the stages up to {last!r}" if last else "Run all stages"
    parser = argparse.ArgumentParser(description=f"{what} of {', '.join(STAGES)}. What is done is skipped.")
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


def _run(arguments: argparse.Namespace, last: str | None) -> dict[str, Any]:
    from selfmoe_ray.config import load_config
    from selfmoe_ray.pipeline import run as pipeline

    config = load_config(arguments.config, arguments.set)
    if arguments.dry_run:
        print(pipeline.describe(config, arguments.redo))
        return {"status": "dry-run"}
    run = pipeline.run(config, redo=arguments.redo, last=last, verbose=arguments.verbose)
    return {"status": "done", "run": run}
