"""How every command ends: exit statuses, signals and the last line for machines, in one place."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from selfmoe_ray.errors import UserError
from selfmoe_ray.machines.environment import mend_environment

DONE = 0
FAILED = 1  # a fault of ours, or what a check found
REFUSED = 2  # a mistake to mend; argparse's own status
STOPPED = 130

# Ray kills a job three seconds after it told it to stop; one that waits for Ray hears of it up to a second later.
_SECONDS_TO_STOP = 1.0


def run_command(work: Callable[[], dict[str, Any]]) -> NoReturn:
    """Do the work of a job and exit; its value is the result for machines.

    Exit status: DONE, FAILED (with its traceback), REFUSED (one message) or STOPPED.
    The last line of the output is `RESULT ` and a JSON object, for machines: Ray does not pass on a driver's exit
    status.
    """
    signal.signal(signal.SIGTERM, _stop)
    status, result = FAILED, {"status": "failed"}
    try:
        tell_mends()
        result = work()
        status = DONE
    except UserError as error:
        status, result = REFUSED, {"status": "refused", "error": print_mistake(error).splitlines()[0]}
    except KeyboardInterrupt:
        _end_stopped()
    except Exception:
        import traceback

        traceback.print_exc()
    _end(status, result)


def _end_stopped() -> NoReturn:
    print("stopped; run the same command again to go on from here", file=sys.stderr)
    _end(STOPPED, {"status": "stopped"})


def _end(status: int, result: dict[str, Any]) -> NoReturn:
    sys.stderr.flush()
    print(f"RESULT {json.dumps(result)}", flush=True)
    leave(status)


@functools.cache
def tell_mends() -> None:
    """Mend this process's environment and say how, once. Raises UserError as `mend_environment` does."""
    for mend in mend_environment():
        if mend.remedy:
            print(f"note: {mend.found} ({mend.remedy})", file=sys.stderr)


def print_mistake(error: UserError) -> str:
    """Print a mistake as one message and return it."""
    # From a Ray task it comes wrapped, with the task's traceback as its text.
    message = str(getattr(error, "cause", error))
    print(f"error: {message}", file=sys.stderr)
    return message


def leave(status: int) -> NoReturn:
    """Exit at once, with what is printed."""
    sys.stdout.flush()
    sys.stderr.flush()
    # Library threads (Ray, vLLM) must not hold up an exit that has nothing left to do.
    os._exit(status)


def _stop(signum: int, frame: Any) -> None:
    if "RAY_ADDRESS" in os.environ:
        # What a library holds up or swallows goes on without us: a driver's end is all that its cluster needs.
        deadline = threading.Timer(_SECONDS_TO_STOP, _end_stopped)
        deadline.daemon = True
        deadline.start()
    raise KeyboardInterrupt
