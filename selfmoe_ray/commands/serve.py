"""The command line of serving on this machine. `--help` loads neither ray nor torch."""

from __future__ import annotations

import argparse
from typing import NoReturn

from selfmoe_ray.commands.job import DONE, REFUSED, leave, print_mistake, tell_mends
from selfmoe_ray.errors import UserError


def main(argv: list[str] | None = None) -> NoReturn:
    """Serve until Ctrl-C or SIGTERM, then exit: 0 stopped so, 2 a mistake to mend. No RESULT line."""
    arguments = parser().parse_args(argv)
    from selfmoe_ray.serving.ray_local import serve_run

    status = DONE
    try:
        tell_mends()
        serve_run(**vars(arguments))
    except UserError as error:
        print_mistake(error)
        status = REFUSED
    leave(status)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description="Serve a finished run on this machine. Ctrl-C stops.")
    parser.add_argument(
        "--run", metavar="DIR", help="a run's folder; the newest finished one below --root if not given"
    )
    parser.add_argument("--root", default="runs", help="where runs are (%(default)s)")
    parser.add_argument("--config", default="serve_configs/mixse_local.yaml", help="Serve config (%(default)s)")
    parser.add_argument("--port", type=int, help="instead of the config's")
    parser.add_argument("--verbose", action="store_true", help="show the replicas' output too")
    return parser
