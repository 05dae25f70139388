"""A killed server takes its engine's processes along."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys

SERVER = """
import subprocess, sys
from selfmoe_ray.serving import orphans
orphans.claim()
orphans.follow()
core = "from selfmoe_ray.serving import orphans; orphans.follow(); print('up', flush=True); import time; time.sleep(60)"
process = subprocess.Popen([sys.executable, "-c", core], stdout=subprocess.PIPE)
process.stdout.readline()
print(process.pid, flush=True)
process.wait()
"""


def test_the_child_of_a_killed_server_ends() -> None:
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE)
    assert server.stdout is not None
    child = os.pidfd_open(int(server.stdout.readline()))
    server.send_signal(signal.SIGKILL)
    server.wait()
    assert select.select([child], [], [], 30)[0], "the child outlived its server by 30 s"
