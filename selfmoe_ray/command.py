"""The command line that all jobs share. `--help` loads neither ray nor torch."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from selfmoe_ray.errors import UserError

# Ray kills a job three seconds after it told it to stop; one that waits for Ray hears of it up to a second later.
_SECONDS_TO_STOP = 1.0
STAGES = ("generate", "experts", "router", "mixse", "measure", "report")


def main(last: str | None = None, argv: list[str] | None = None) -> None:
    """Run the pipeline up to and including the stage `last` (default: all of it), then exit.

    Exit status: 0 done, 2 a mistake to mend (one message, no traceback), 130 stopped.
    The last line of the output is `RESULT ` and a JSON object, for machines: Ray does not pass on a
    driver's exit status.
    """
    arguments = _parser(last).parse_args(argv)
    run_command(lambda: _run(arguments, last))


def run_command(work: Callable[[], dict[str, Any]]) -> NoReturn:
    """Do the work of a job and exit; its value is the result for machines. Statuses and output: see `main`."""
    signal.signal(signal.SIGTERM, _stop)
    status, result = 1, {"status": "failed"}
    try:
        result = work()
        status = 0
    except UserError as error:
        # From a Ray task it comes wrapped, with the task's traceback as its text.
        message = str(getattr(error, "cause", error))
        print(f"error: {message}", file=sys.stderr)
        status, result = 2, {"status": "refused", "error": message.splitlines()[0]}
    except KeyboardInterrupt:
        _end_stopped()
    except Exception:
        import traceback

        traceback.print_exc()
    _end(status, result)


def _end_stopped() -> NoReturn:
    print("stopped; run the same command again to go on from here", file=sys.stderr)
    _end(130, {"status": "stopped"})


def _end(status: int, result: dict[str, Any]) -> NoReturn:
    sys.stderr.flush()
    print(f"RESULT {json.dumps(result)}", flush=True)
    # Library threads (Ray, vLLM) must not hold up an exit that has nothing left to do.
    os._exit(status)


def _stop(signum: int, frame: Any) -> None:
    if "RAY_ADDRESS" in os.environ:
        # What a library holds up or swallows goes on without us: a driver's end is all that its cluster needs.
        deadline = threading.Timer(_SECONDS_TO_STOP, _end_stopped)
        deadline.daemon = True
        deadline.start()
    raise KeyboardInterrupt


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
    from selfmoe_ray import pipeline
    from selfmoe_ray.config import load_config

    config = load_config(arguments.config, arguments.set)
    if arguments.dry_run:
        print(pipeline.describe(config, arguments.redo))
        return {"status": "dry-run"}
    run = pipeline.run(config, redo=arguments.redo, last=last, verbose=arguments.verbose)
    return {"status": "done", "run": run}
