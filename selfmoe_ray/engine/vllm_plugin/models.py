"""vLLM's own model classes, each with experts on its linear layers; built by name, on first use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from vllm import ModelRegistry
from vllm.config.compilation import CompilationMode, CUDAGraphMode
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from selfmoe_ray.base_model.weights import check_numbers
from selfmoe_ray.engine import patches
from selfmoe_ray.engine.kernels.mixture import cpu_kernels
from selfmoe_ray.engine.vllm_plugin import requests
from selfmoe_ray.engine.vllm_plugin.checkpoint import MixseCheckpoint, Place, read_checkpoint
from selfmoe_ray.engine.vllm_plugin.gates import TokenGates
from selfmoe_ray.engine.vllm_plugin.method import MixtureLinearMethod
from selfmoe_ray.engine.vllm_plugin.pass_state import PassState
from selfmoe_ray.engine.vllm_plugin.recorder import GateRecorder
from selfmoe_ray.engine.vllm_plugin.stacked import StackedExperts
from selfmoe_ray.errors import UserError
from selfmoe_ray.mixture.decoder import ROUTER_READS
from selfmoe_ray.mixture.mixse_dir import ARCHITECTURE_PREFIX, ROUTER_WEIGHTS

# What vLLM fuses in models that do not say it.
USUALLY_PACKED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
# The load formats that give each process weights of its own, which it may change.
OWN_WEIGHTS = ("auto", "safetensors", "hf", "dummy")


def __getattr__(name: str) -> Any:
    base = name.removeprefix(ARCHITECTURE_PREFIX)
    if base == name or base not in ModelRegistry.models:
        raise AttributeError(name)
    cls = _mixse_class(name, ModelRegistry.models[base].load_model_cls())
    globals()[name] = cls
    return cls


def _mixse_class(name: str, base: Any) -> type[nn.Module]:
    class MixseForCausalLM(base):
        allow_patterns_overrides = (ROUTER_WEIGHTS,)

        def __init__(self, *, vllm_config: Any, prefix: str = ""):
            super().__init__(vllm_config=vllm_config, prefix=prefix)
            model_config = vllm_config.model_config
            checkpoint = read_checkpoint(model_config.hf_config, model_config.model)
            self.secondary_weights = [DefaultModelLoader.Source(str(checkpoint.base), None)]
            # Not the device of the moment: vLLM builds a model that maps its weights without memory of its own.
            with vllm_config.device_config.device:
                self.mixture = VllmMixture(self, checkpoint, vllm_config)
            requests.install_in_worker(vllm_config)

        def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
            return super().load_weights(self.mixture.of_base(weights)) | self.mixture.load()

        def get_model_state_cls(self) -> type:
            from selfmoe_ray.engine.vllm_plugin.model_state import MixseModelState

            return MixseModelState

    MixseForCausalLM.__name__ = MixseForCausalLM.__qualname__ = name
    return MixseForCausalLM


class VllmMixture:
    """The experts and the router of a vLLM model, attached to its linear layers in place."""

    def __init__(self, model: Any, checkpoint: MixseCheckpoint, vllm_config: Any):
        patches.checked(patches.EXPERTS_ATTACHED)
        max_tokens = vllm_config.scheduler_config.max_num_batched_tokens
        num_layers = vllm_config.model_config.hf_text_config.num_hidden_layers
        self.checkpoint = checkpoint
        self.spec = checkpoint.spec
        self.gates = TokenGates(self.spec, max_tokens)
        self.packed: dict[str, list[str]] = getattr(model, "packed_modules_mapping", None) or USUALLY_PACKED
        parts = max(map(len, self.packed.values()), default=1)
        dtype, is_eager = vllm_config.model_config.dtype, _is_eager(vllm_config)
        self.recorder = GateRecorder(num_layers, max_tokens, len(self.spec.experts), is_eager)
        kernels = cpu_kernels(dtype, self.gates.k.device)
        self.pass_state = PassState(self.spec, self.gates, self.recorder, parts, dtype, is_eager, kernels)
        self.owns_weights = vllm_config.load_config.load_format in OWN_WEIGHTS
        self.linears: dict[Place, tuple[str, LinearBase, int]] = {}
        self.thetas: dict[int, Tensor] = {}
        self._attach(model)

    def _attach(self, model: Any) -> None:
        wanted = self.checkpoint.places()
        last: MixtureLinearMethod | None = None
        for name, module in model.named_modules():
            place = Place.of(name)
            if place is None or not isinstance(module, LinearBase):
                continue
            # One that is fused in the checkpoint already is its own only part, whatever vLLM would fuse there.
            paths = [place.path] if place in wanted else _parts(place.path, self.packed)
            parts = [Place(place.layer, path) for path in paths]
            reads = any(part.path.removeprefix("self_attn.") in ROUTER_READS for part in parts)
            if reads or not wanted.isdisjoint(parts):
                last = self._attach_linear(name, module, parts, reads)
        missing = sorted(str(place) for place in wanted - set(self.linears))
        layers = {place.layer for place in self.linears}
        if missing or last is None or layers != set(self.thetas):
            reason = f"has no {missing[0]}" if missing else "has a layer without q_proj or qkv_proj"
            raise UserError(f"{self.checkpoint.mixse.folder}: vLLM's {type(model).__name__} {reason}")
        last.last = True

    def _attach_linear(self, name: str, linear: LinearBase, parts: list[Place], reads: bool) -> MixtureLinearMethod:
        base = linear.quant_method
        if not isinstance(base, UnquantizedLinearMethod):
            raise UserError(f"{name} is quantised ({type(base).__name__}); experts need plain linear layers")
        theta = self._theta(parts[0].layer, linear.input_size) if reads else None
        paths, by_part = [part.path for part in parts], self.pass_state.kernels is not None
        linear.mixse_experts = StackedExperts(linear, paths, self.spec, by_part)
        merge = self.owns_weights and linear.mixse_experts.block_diagonal
        linear.quant_method = MixtureLinearMethod(base, self.pass_state, parts[0].layer, theta, merge)
        self.linears |= {part: (name, linear, index) for index, part in enumerate(parts)}
        return linear.quant_method

    def _theta(self, layer: int, hidden: int) -> Tensor:
        shared = self.thetas.get(0) if self.spec.router.scope == "shared" else None
        theta = torch.zeros(len(self.spec.experts), hidden, dtype=torch.float32) if shared is None else shared
        self.thetas[layer] = theta
        return theta

    def of_base(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The base's of all weights that vLLM reads. Raises UserError where one holds no finite numbers."""
        for name, weight in weights:
            if not name.startswith("theta."):
                check_numbers([(name, weight)], f"base_model: {self.checkpoint.base}")
                yield name, weight

    def load(self) -> set[str]:
        """Read all experts and the router; the names of the parameters that are ours."""
        for expert in range(len(self.spec.experts)):
            for place, a, b in self.checkpoint.expert(expert):
                _, linear, part = self.linears[place]
                linear.mixse_experts.load(linear, expert, part, a, b)
        thetas = self.checkpoint.mixse.thetas()
        for layer, theta in self.thetas.items():
            theta.copy_(thetas[layer if self.spec.router.scope == "layer" else 0])
        experts = {name: linear.mixse_experts for name, linear, _ in self.linears.values()}
        return {f"{name}.mixse_experts.{own}" for name, each in experts.items() for own, _ in each.named_parameters()}


def _is_eager(vllm_config: Any) -> bool:
    """Whether no forward pass of this engine is compiled or captured."""
    compilation = vllm_config.compilation_config
    return compilation.mode == CompilationMode.NONE and compilation.cudagraph_mode == CUDAGraphMode.NONE


def _parts(path: str, packed: dict[str, list[str]]) -> list[str]:
    parent, _, leaf = path.rpartition(".")
    return [f"{parent}.{part}" if parent else part for part in packed.get(leaf, [leaf])]
