"""Whether a base can become a mixture that is served: all that can be told in seconds, without a weight of it.

Runs, evaluations and servers ask before anything else, so that what could only fail at their end fails at once.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import os
from pathlib import Path

from selfmoe_ray.base_model import BaseModel
from selfmoe_ray.base_model.outline import Outline, read_outline
from selfmoe_ray.errors import UserError, did_you_mean
from selfmoe_ray.machines.hardware import FastDtype, fast_dtype
from selfmoe_ray.machines.packages import installed_version

# The module of vLLM that names what it has models of, and its tables there.
_REGISTRY = "model_executor/models/registry.py"
_TEXT, _MULTIMODAL = "_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS"


def check_base(base: BaseModel) -> Outline:
    """Check a base's files, layers, special tokens and architecture; returns what was read for it.

    Raises UserError that names the file and field, what was found, and what would be right.
    """
    from selfmoe_ray.mixture.checkpoint import check_attachable

    outline = read_outline(base)
    check_attachable(outline)
    check_architecture(outline)
    return outline


def check_architecture(outline: Outline) -> None:
    """Raises UserError where vLLM has no text model of the base's architecture."""
    text, multimodal = registered(_TEXT), registered(_MULTIMODAL)
    found = outline.architectures[0]
    if not text or (found in text and found not in multimodal):
        return
    where = f"base_model: {Path(outline.base.path) / 'config.json'}: architectures has {found!r}"
    vllm = f"vLLM {installed_version('vllm')}"
    if found in multimodal:
        raise UserError(f"{where}, which {vllm} runs as a model of images or sound; give the text model's checkpoint")
    own = type(outline.model).__name__
    remedy = f"write {own!r}, as which transformers loads it" if own in text else did_you_mean(found, sorted(text), n=2,
        otherwise="give a base of a family that vLLM and transformers both have")  # fmt: skip
    raise UserError(f"{where}, which {vllm} has no text model of, so that nothing could be served; {remedy}")


def check_dtype(dtype: str, setting: str, found: FastDtype) -> None:
    """Raises UserError where engines on GPUs are to compute in bfloat16, which theirs do not know.

    setting: what asks for the dtype. found: of the machines that engines run on.
    """
    if dtype == "bfloat16" and found.on_gpu and found.dtype != dtype:
        raise UserError(
            f"{setting}: bfloat16, but there is {found.device}, and vLLM computes in bfloat16 from 8.0 on; "
            "give float32, or use GPUs of the Ampere generation or newer"
        )


def fast_dtype_of_engines() -> FastDtype:
    """What the cluster that RAY_ADDRESS names is fast in, or else this machine. Raises UserError where none answers."""
    if "RAY_ADDRESS" not in os.environ:
        return fast_dtype()
    from selfmoe_ray.machines.ray_checks import fast_dtype_of_cluster

    return fast_dtype_of_cluster()


@functools.cache
def registered(table: str) -> frozenset[str]:
    """The architectures in one of vLLM's tables; none where this vLLM has no such table.

    Read from its source: importing vLLM takes up to a minute, and a driver's machine need not have its device.
    """
    spec = importlib.util.find_spec("vllm")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        source = Path(folder) / _REGISTRY
        if source.is_file():
            return frozenset(_keys(ast.parse(source.read_text()), table))
    return frozenset()


def _keys(tree: ast.Module, table: str) -> list[str]:
    assigned = (node for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict))
    return [
        key.value
        for node in assigned
        if isinstance(node.value, ast.Dict)
        and any(isinstance(target, ast.Name) and target.id == table for target in node.targets)
        for key in node.value.keys
        if isinstance(key, ast.Constant) and isinstance(key.value, str)
    ]
