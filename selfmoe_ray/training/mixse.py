"""The step that makes `mixse/` of trained experts and their router."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

from selfmoe_ray.base_model import BaseModel
from selfmoe_ray.config import RunConfig
from selfmoe_ray.run.run_dir import RunDir
from selfmoe_ray.training.stage import Expected


def assemble(config: RunConfig, experts: Sequence[str], base: BaseModel, run_dir: RunDir) -> None:
    """Write `mixse/` from finished experts, in this order, and the router, its manifest last."""
    from selfmoe_ray.mixture.checkpoint import assemble_mixse
    from selfmoe_ray.mixture.spec import MixtureSpec

    start = time.monotonic()
    spec = MixtureSpec.uniform(list(experts), config.mixture, base.value, base.content_hash)
    with contextlib.ExitStack() as stack:
        read = run_dir.storage.local_folder_to_read
        adapters = {name: stack.enter_context(read(run_dir.expert(name))) for name in experts}
        router = stack.enter_context(read(run_dir.ROUTER))
        folder = stack.enter_context(run_dir.storage.local_folder_to_write(run_dir.MIXSE))
        assemble_mixse(spec, adapters, router, folder, base)
    expected = mixse_manifest(config, experts, base, run_dir)
    run_dir.write_manifest(run_dir.MIXSE, *expected, {"experts": len(experts)}, time.monotonic() - start)


def mixse_manifest(config: RunConfig, experts: Sequence[str], base: BaseModel, run_dir: RunDir) -> Expected:
    """The settings and inputs that `mixse/manifest.json` must carry."""
    settings = {
        "mixture": config.mixture.model_dump(),
        "base_model": base.value,
        "base_hash": base.content_hash,
    }
    folders = [*map(run_dir.expert, experts), run_dir.ROUTER]
    return settings, {folder: run_dir.manifest_hash(folder) for folder in folders}
