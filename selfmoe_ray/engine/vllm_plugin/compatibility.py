"""Which vLLM this plugin was tested with; the plugin reaches into parts that change between versions."""

from __future__ import annotations

import os

from selfmoe_ray.machines.packages import TESTED_VLLM

OVERRIDE = "MIXSE_UNTESTED_VLLM"


def problem() -> str | None:
    """Why this vLLM may not be used, or None. MIXSE_UNTESTED_VLLM=1 takes any version."""
    import vllm

    version = vllm.__version__
    if version.startswith(f"{TESTED_VLLM}.") or os.environ.get(OVERRIDE) == "1":
        return None
    return (
        f"vLLM {version} is installed, but MiXSE checkpoints were tested with {TESTED_VLLM}.x only; "
        f"install vllm=={TESTED_VLLM}.*, or set {OVERRIDE}=1 to try this version"
    )
