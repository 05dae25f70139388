"""`dtype: auto` becomes a dtype, once a run: what its machines are fast in, or what the run has already."""

from __future__ import annotations

from selfmoe_ray.config import RunConfig
from selfmoe_ray.engine.preflight import fast_dtype_of_engines
from selfmoe_ray.run.events import Emit
from selfmoe_ray.run.run_dir import RunDir

_SECTIONS = ("generation", "training")


def settle_dtypes(config: RunConfig, run_dir: RunDir, emit: Emit) -> RunConfig:
    """The config with a dtype in place of each "auto", and says which and why.

    A run that was taken up before keeps its dtypes, on whatever machine it goes on. On a cluster every node is
    asked; Raises UserError where none answers.
    """
    unset = [section for section in _SECTIONS if getattr(config, section).dtype == "auto"]
    if not unset:
        return config
    recorded = run_dir.read_config() or {}
    dtypes = {section: recorded.get(section, {}).get("dtype", "auto") for section in unset}
    if "auto" in dtypes.values():
        found = fast_dtype_of_engines()
        dtypes = {section: found.dtype if dtype == "auto" else dtype for section, dtype in dtypes.items()}
        emit("run", message=f"dtype: auto is {found.dtype} here, on {found.device}")
    changes = {name: getattr(config, name).model_copy(update={"dtype": dtype}) for name, dtype in dtypes.items()}
    return config.model_copy(update=changes)
