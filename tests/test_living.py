"""What the tests see of processes that end while they look."""

import subprocess
import sys

import psutil

from selfmoe_ray.machines.processes import is_alive
from tests.living import find_named


def test_a_process_that_waits_for_its_parent_is_not_found():
    ended = psutil.Popen([sys.executable, "-c", "print(flush=True)"], stdout=subprocess.PIPE)
    ended.stdout.read()
    try:
        while is_alive(ended.pid):
            pass
        assert find_named("python", [ended]) == []
    finally:
        ended.wait()
