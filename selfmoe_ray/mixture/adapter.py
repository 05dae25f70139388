"""An expert on disk: a stock PEFT LoRA adapter, its config and its tensors, each checked against the other."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from selfmoe_ray.errors import UserError
from selfmoe_ray.mixture.spec import MixtureSpec
from selfmoe_ray.mixture.tensor_file import check_base, read_header, read_tensors

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"

_PREFIX = "base_model.model."
# Fields of a PEFT config that a plain LoRA may set; any other changes what the adapter computes.
_PLAIN_FIELDS = {
    *("auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying", "eva_config"),
    *("exclude_modules", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform"),
    *("loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_core", "peft_type", "peft_version"),
    *("qalora_group_size", "r", "revision", "runtime_config", "target_modules", "task_type", "use_rslora"),
}
# Starts that take a part of the base's weights out of them, so that the adapter fits no other base.
_INIT_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Of a config that says more of its targets than names.
_PARTIAL_TARGETS = ("exclude_modules", "layers_to_transform", "layers_pattern")


def adapter_key(module: str, matrix: str) -> str:
    """PEFT's name of the matrix "A" or "B" of a linear."""
    return f"{_PREFIX}{module}.lora_{matrix}.weight"


@dataclass(frozen=True)
class AdapterConfig:
    """What a PEFT LoRA adapter says of itself; alpha: such that alpha / r is its scaling."""

    path: Path
    r: int
    alpha: float
    base_model: str
    targets: str | list[str] | None

    @classmethod
    def read(cls, folder: Path) -> AdapterConfig:
        """Raises UserError where there is none, and for what the stacked layer cannot express."""
        path = folder / ADAPTER_CONFIG
        try:
            config = json.loads(path.read_text())
            r, alpha = int(config.get("r") or 0), float(config.get("lora_alpha") or 0)
        except FileNotFoundError:
            raise UserError(f"{folder}: no {ADAPTER_CONFIG}; give the folder of a PEFT LoRA adapter") from None
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: damaged ({error})") from None
        for field in _refused_fields(config):
            raise UserError(f"{path}: {field} = {config.get(field)!r} cannot be part of a mixture; plain LoRA can")
        # Rank-stabilised LoRA scales by alpha / sqrt(r).
        effective = alpha * (r**0.5 if config.get("use_rslora") else 1.0)
        is_partial = any(config.get(field) for field in _PARTIAL_TARGETS)
        targets = None if is_partial else config.get("target_modules")
        return cls(path, r, effective, str(config.get("base_model_name_or_path") or ""), targets)

    def has_target(self, module: str) -> bool | None:
        """Whether the adapter changes a linear; None where it does not say."""
        if isinstance(self.targets, list):
            return any(module == target or module.endswith(f".{target}") for target in self.targets)
        if self.targets is None or self.targets == "all-linear":
            return None
        return re.fullmatch(self.targets, module) is not None


def _refused_fields(config: Mapping[str, Any]) -> Iterator[str]:
    if config.get("peft_type") != "LORA":
        yield "peft_type"
    if not (config.get("r") or 0) > 0:
        yield "r"
    if config.get("bias", "none") != "none":
        yield "bias"
    if str(config.get("init_lora_weights")).startswith(_INIT_CHANGES_BASE):
        yield "init_lora_weights"
    yield from (field for field, value in config.items() if value and field not in _PLAIN_FIELDS)


@dataclass(frozen=True)
class AdapterFile:
    """The adapter of one expert of a mixture: by its folder, and its place among the spec's experts."""

    folder: Path
    expert: int
    spec: MixtureSpec

    @property
    def path(self) -> Path:
        """The file of its tensors."""
        return self.folder / ADAPTER_WEIGHTS

    @property
    def rank(self) -> int:
        """The one that the mixture's spec has for it."""
        return self.spec.ranks[self.expert]

    def check(self, linears: Mapping[str, Sequence[int]], is_whole: bool = False) -> None:
        """Raises UserError where the adapter is missing or damaged, of another base, half, or does not fit.

        linears: [out, in] by module name; is_whole: whether a linear that is not among them is not there.
        """
        metadata, shapes = read_header(self.path)
        check_base(self.path, metadata, self.spec.base_model, self.spec.base_hash)
        config = AdapterConfig.read(self.folder)
        alpha = self.spec.alphas[self.expert]
        if config.r != self.rank or not math.isclose(config.alpha, alpha, rel_tol=1e-6):
            raise UserError(
                f"{config.path}: r is {config.r} and alpha {config.alpha:g}, the mixture's config.json has "
                f"{self.rank} and {alpha:g} for {self.spec.experts[self.expert]!r}; one of them is wrong"
            )
        named = [(name, *self._parse(name)) for name in shapes]
        if unknown := [name for name, module, _ in named if is_whole and module not in linears]:
            raise UserError(f"{self.path}: {unknown[0]} has no place in this base model ({len(unknown)} such tensors)")
        for name, module, matrix in named:
            partner = adapter_key(module, "B" if matrix == "A" else "A")
            if partner not in shapes:
                raise UserError(f"{self.path}: {name} has no {partner}")
            self._check_shape(name, shapes[name], matrix, module, linears.get(module))
        self._check_targets(config, {module for _, module, _ in named}, linears)

    def _check_shape(
        self, name: str, shape: Sequence[int], matrix: str, module: str, linear: Sequence[int] | None
    ) -> None:
        if linear is None:
            return
        wanted = [self.rank, linear[1]] if matrix == "A" else [linear[0], self.rank]
        if list(shape) != wanted:
            raise UserError(
                f"{self.path}: {name} has shape {list(shape)}, but r is {self.rank} and {module} is {list(linear)}"
            )

    def _check_targets(self, config: AdapterConfig, modules: set[str], linears: Mapping[str, Sequence[int]]) -> None:
        """The file has what its config says, and no more: PEFT would draw the one anew and leave the other out."""
        if left := [module for module in sorted(modules) if config.has_target(module) is False]:
            raise UserError(f"{self.path}: {adapter_key(left[0], 'A')} is no target of {ADAPTER_CONFIG}")
        # A checkpoint's file may call its tensors otherwise than the model that is loaded from it.
        known = linears if modules <= linears.keys() else ()
        if missing := [name for name in known if config.has_target(name) and name not in modules]:
            raise UserError(f"{self.path}: {adapter_key(missing[0], 'A')} is missing, a target of {ADAPTER_CONFIG}")

    @property
    def modules(self) -> list[str]:
        """The linears that the expert changes, by their module names."""
        return [module for module, matrix in map(self._parse, read_header(self.path)[1]) if matrix == "A"]

    def pairs(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Each linear's module name, A [r, in] and B [out, r]. Raises UserError as `read_tensors`."""
        for module in self.modules:
            a, b = read_tensors(self.path, (adapter_key(module, "A"), adapter_key(module, "B")))
            yield module, a, b

    def _parse(self, name: str) -> tuple[str, str]:
        module, _, matrix = name.removeprefix(_PREFIX).rpartition(".lora_")
        if not name.startswith(_PREFIX) or matrix not in ("A.weight", "B.weight"):
            raise UserError(f"{self.path}: {name} is not a plain LoRA weight")
        return module, matrix[0]
