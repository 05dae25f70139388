"""vLLM engines that end with the block that uses them."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def engine(folder: Path, **settings: Any) -> Iterator[Any]:
    """A resident float32 engine; with its small batches prompts are split into chunks."""
    from vllm import LLM

    defaults = {"max_model_len": 256, "max_num_batched_tokens": 64, "max_num_seqs": 32, "block_size": 32}
    llm = LLM(str(folder), dtype="float32", **defaults | settings)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
