"""What arXiv 2406.12034 reports for its base, Gemma-7B: scores in percent of tables 1 to 4 and 8."""

from __future__ import annotations

from selfmoe_ray.mixture.gate import top_gate
from selfmoe_ray.mixture.systems import MIXSE, OTHERS, TARGETS

PAPER_BASE = "Gemma-7B"

_TARGET_SCORES = {
    "base": (58.4, 56.1, 42.5, 34.1),
    "expert-knowledge": (64.0, 41.7, 40.5, 28.0),
    "expert-reasoning": (60.1, 60.2, 41.0, 28.7),
    "expert-math": (59.3, 58.9, 50.0, 36.0),
    "expert-coding": (57.2, 57.2, 46.0, 37.2),
    "instance": (62.6, 57.6, 53.5, 36.0),
    "ties": (63.7, 56.3, 38.5, 32.9),
    "dare": (37.7, 59.6, 45.0, 34.8),
    "mixse": (65.6, 61.1, 52.5, 37.8),
    "top2": (65.5, 60.9, 52.5, 38.4),
    "all": (65.4, 58.9, 54.0, 33.5),
    "random": (59.9, 58.5, 48.0, 36.6),
    "joint": (64.5, 58.1, 46.0, 33.5),
    "first2": (65.8, 58.0, 43.0, 32.3),
    "first3": (62.7, 61.5, 54.5, 32.9),
    "seeds": (57.4, 57.0, 45.0, 34.1),
}
_OTHER_SCORES = {
    "base": (20.7, 37.8, 24.2, 63.9, 80.6, 81.1, 44.7),
    "instance": (15.3, 37.6, 22.3, 58.6, 78.0, 80.1, 42.2),
    "mixse": (21.4, 39.6, 24.5, 62.5, 80.7, 81.2, 44.3),
}


def paper_score(system: str, benchmark: str) -> float | None:
    """A system's score on a benchmark as a share, where the paper has one; "top1" is its MiXSE."""
    name = MIXSE if system == top_gate(1) else system
    for benchmarks, scores in ((tuple(TARGETS), _TARGET_SCORES), (OTHERS, _OTHER_SCORES)):
        if benchmark in benchmarks and name in scores:
            return scores[name][benchmarks.index(benchmark)] / 100
    return None
