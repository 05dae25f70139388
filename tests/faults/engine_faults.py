"""A vLLM plugin that makes engine cores slow, mortal or mute, as the environment says.

FAULT_STEP_SECONDS: what each step takes longer. FAULT_POISON: the sampler seed of a request that kills the core.
FAULT_HANG_ONCE: a file; the first core to be given work makes it and works no more.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

NAME = "engine_faults"


def install_into(folder: Path) -> str:
    """Make `folder` a place on PYTHONPATH from which vLLM loads this plugin; returns the folder."""
    information = folder / f"{NAME}-0.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 0.0\n")
    (information / "entry_points.txt").write_text(f"[vllm.general_plugins]\n{NAME} = {NAME}:register\n")
    (folder / f"{NAME}.py").write_text(Path(__file__).read_text())
    return str(folder)


def register() -> None:
    """Called by vLLM in each of its processes."""
    from vllm.v1.engine.core import EngineCore

    seconds, poison = float(os.environ.get("FAULT_STEP_SECONDS", 0)), os.environ.get("FAULT_POISON")
    hang = os.environ.get("FAULT_HANG_ONCE")
    step, add_request = EngineCore.step, EngineCore.add_request

    def slow_step(self: Any) -> Any:
        if self.scheduler.has_requests():
            time.sleep(seconds)
            if hang and not os.path.exists(hang):
                Path(hang).touch()
                time.sleep(3600)
        return step(self)

    def add_poison(self: Any, request: Any, *arguments: Any) -> None:
        if poison and str(request.sampling_params.seed) == poison:
            os.kill(os.getpid(), signal.SIGKILL)
        add_request(self, request, *arguments)

    if not getattr(EngineCore, "is_faulty", False):
        EngineCore.step, EngineCore.add_request, EngineCore.is_faulty = slow_step, add_poison, True
