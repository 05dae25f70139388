"""`selfmoe`: every command under one name. `--help` loads no command, so neither torch nor ray."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from typing import NamedTuple, NoReturn

from selfmoe_ray import __version__
from selfmoe_ray.commands.job import REFUSED, print_mistake, tell_mends
from selfmoe_ray.errors import UserError


class Command(NamedTuple):
    """A module whose `main(argv=...)` does the work, and what `--help` says of it."""

    module: str
    sentence: str


COMMANDS = {
    "run": Command("selfmoe_ray.commands.run", "From seeds to a mixture and its report."),
    "eval": Command("selfmoe_ray.commands.eval", "Score a run's systems on benchmarks."),
    "studies": Command("selfmoe_ray.commands.studies", "Make tables and figures of the paper on a run of your own."),
    "serve": Command("selfmoe_ray.commands.serve", "Serve a finished run on this machine."),
    "doctor": Command("selfmoe_ray.commands.doctor", "Check this machine and the nodes of a cluster."),
    "base-model": Command("selfmoe_ray.base_model.__main__", "Print the local directory of a base model."),
}


def main(argv: list[str] | None = None) -> NoReturn:
    """Run the command that is named first and exit with its status; 2 where there is none of that name."""
    given = parser().parse_args(argv)
    try:
        tell_mends()
    except UserError as error:
        print_mistake(error)
        sys.exit(REFUSED)
    # argparse, in the command, opens its usage with it.
    sys.argv[0] = f"selfmoe {given.command}"
    sys.exit(import_module(COMMANDS[given.command].module).main(argv=given.arguments))


def parser() -> argparse.ArgumentParser:
    """The command line up to the command's name."""
    width = max(map(len, COMMANDS))
    parser = argparse.ArgumentParser(
        prog="selfmoe",
        description="A base LLM becomes a mixture of self-specialised experts.",
        epilog="\n".join(
            ["commands:", *(f"  {name:{width}}  {command.sentence}" for name, command in COMMANDS.items())]
        )
        + "\n\n`selfmoe COMMAND --help` has a command's options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"selfmoe_ray {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="the command's own")
    return parser
