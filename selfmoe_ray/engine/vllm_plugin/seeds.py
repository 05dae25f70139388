"""Seeded requests whose prompt is computed in parts, on a CPU.

After each part vLLM's V1 runner samples a token for the row, throws it away, and rewinds the row's
generator. A CPU's generator cannot be rewound: without this, such a request ends the engine.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def sample_tokens(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """`GPUModelRunner.sample_tokens`; rows whose token is thrown away draw from no generator of their own."""
    generators = self.input_batch.generators
    discarded = np.nonzero(self.discard_request_mask.np[: self.input_batch.num_reqs])[0].tolist()
    kept = {row: generators.pop(row) for row in discarded if row in generators}
    try:
        return original(self, *args, **kwargs)
    finally:
        generators.update(kept)
