"""How systems are called in the page."""

from __future__ import annotations

import re


def system_title(name: str) -> str:
    """How a system is called in the page."""
    titles = {
        "mixse": "MiXSE",
        "mixse-fitted": "MiXSE, router only fitted to labels",
        "oracle": "own domain's expert (oracle)",
        "uniform": "uniform gates",
        "random": "a random expert per token",
        "instance": "instance merging",
        "ties": "TIES",
        "dare": "DARE",
        "joint": "experts and router trained jointly",
        "seeds": "MiXSE of seeds only",
        "all": "MiXSE, all experts",
    }
    if name.startswith("expert-"):
        return f"expert {name.removeprefix('expert-')}"
    if numbered := re.fullmatch(r"(top|first|data|instance)(\d+)", name):
        return _NUMBERED_TITLES[numbered[1]].format(numbered[2])
    return titles.get(name, name)


_NUMBERED_TITLES = {
    "top": "MiXSE, top {}",
    "first": "MiXSE of the first {} experts",
    "data": "MiXSE, {}% of the synthetic data",
    "instance": "instance merging, {}% of the synthetic data",
}
