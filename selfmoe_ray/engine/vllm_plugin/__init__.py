"""vLLM loads a `mixse` directory as if it were any model: `vllm.LLM("<run>/mixse")`.

Installed as an entry point of the group `vllm.general_plugins`, so vLLM calls `register` in each of
its processes. For every architecture that vLLM knows, "Mixse" + its name becomes an architecture
too; the class is built when a checkpoint asks for it.

A request chooses its gate by `SamplingParams(extra_args={"mixse_gate": ...})`, over HTTP by
`"vllm_xargs": {"mixse_gate": ...}`: "router" (the default), "top<k>", "base", "uniform", "random" or the name
of an expert. Each row of a batch has its own gate, and requests share cached prefixes only with
requests of the same gate.
"""

from __future__ import annotations

import os


def register() -> None:
    """Teach vLLM the Mixse architectures; may be called any number of times."""
    from vllm import ModelRegistry

    from selfmoe_ray.engine import orphans, threads
    from selfmoe_ray.engine.kernels import top_p
    from selfmoe_ray.engine.plan import FAST_TOP_P
    from selfmoe_ray.engine.shared_weights import loader
    from selfmoe_ray.engine.vllm_plugin import config, requests
    from selfmoe_ray.mixture.mixse_dir import ARCHITECTURE_PREFIX

    orphans.follow()
    threads.follow_quota()
    bases = [name for name in ModelRegistry.get_supported_archs() if not name.startswith(ARCHITECTURE_PREFIX)]
    for base in bases:
        name = f"{ARCHITECTURE_PREFIX}{base}"
        if name not in ModelRegistry.models:
            ModelRegistry.register_model(name, f"{__name__}.models:{name}")
    config.register(bases)
    if config.problem() is None:
        requests.install()
        if os.environ.get(FAST_TOP_P):
            top_p.install()
        loader.register()
