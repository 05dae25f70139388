"""Gates: for each token a vector g of n mixture weights. Every system of the paper is one of these.

The names that requests give them, and what each means, stand here alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from selfmoe_ray.errors import UserError

# Of a request: the key of its gate, in vLLM's `extra_args` and over HTTP in `vllm_xargs`.
GATE_KEY = "mixse_gate"
# Letters of an expert's name, which is a folder's and part of Ray's and vLLM's names.
MAX_NAME = 100
ROUTER, BASE, UNIFORM, RANDOM = "router", "base", "uniform", "random"
_TOP = re.compile(r"top(\d+)")
# Of the router's object in a request: the experts that it may choose from, and how many a token.
_ONLY, _K = "only", "k"
# Far above any weight of use; what is larger overflows in the engine and answers are noise.
MOST_WEIGHT = 16.0


@dataclass(frozen=True, eq=False)
class Gate:
    """How the tokens of a forward pass are gated; an immutable value made by the class methods."""

    kind: Literal["off", "rows", "uniform", "expert", "random", "router"]
    k: int = 1
    index: int = 0
    weights: Tensor | None = None
    among: tuple[int, ...] | None = None

    @classmethod
    def off(cls) -> Gate:
        """No expert: the base model, exactly."""
        return cls("off")

    @classmethod
    def expert(cls, index: int) -> Gate:
        """One expert at weight 1 for every token."""
        return cls("expert", index=index)

    @classmethod
    def uniform(cls) -> Gate:
        """Every expert at weight 1/n."""
        return cls("uniform")

    @classmethod
    def random(cls) -> Gate:
        """An expert at weight 1 for each token, drawn by its position alone and the same in all layers.

        So neither the batch nor a cached prefix changes it, and a repeated run repeats it.
        """
        return cls("random")

    @classmethod
    def router(cls, k: int, among: Sequence[int] | None = None) -> Gate:
        """The router's top-k probabilities, not renormalised (paper, section 3.2).

        among: the experts that there are for it, by index; its softmax is over their logits alone. None for all.
        """
        return cls("router", k=k, among=None if among is None else tuple(sorted(among)))

    @classmethod
    def constant(cls, weights: Sequence[float]) -> Gate:
        """The same weights [n] for every token."""
        return cls("rows", weights=torch.tensor([weights], dtype=torch.float32))

    @classmethod
    def rows(cls, weights: Tensor) -> Gate:
        """Constant weights [batch, n] for each row; one-hot rows isolate one expert each."""
        return cls("rows", weights=weights)

    def fixed(self, n: int, device: torch.device) -> Tensor | None:
        """The weights [batch or 1, 1, n] where they are known before the pass, else None."""
        if self.kind == "uniform":
            return torch.full((1, 1, n), 1.0 / n, device=device)
        if self.kind == "expert":
            if not 0 <= self.index < n:
                raise IndexError(f"expert {self.index} asked for, the mixture has {n}")
            one_hot = torch.zeros(1, 1, n, device=device)
            one_hot[..., self.index] = 1.0
            return one_hot
        if self.kind == "rows":
            assert self.weights is not None
            if self.weights.dim() != 2 or self.weights.shape[1] != n:
                raise ValueError(f"row gates must be [batch, {n}], found {list(self.weights.shape)}")
            return self.weights.to(device, torch.float32)[:, None, :]
        return None


def top_k(probabilities: Tensor, k: int) -> Tensor:
    """Keep the k largest of the last axis, zero the others; no renormalisation. Same shape."""
    if k >= probabilities.shape[-1]:
        return probabilities
    values, experts = probabilities.topk(k, dim=-1)
    return torch.zeros_like(probabilities).scatter(-1, experts, values)


def top_gate(k: int) -> str:
    """The name of the router's gate with another number of experts a token."""
    return f"top{k}"


def is_reserved(name: str) -> bool:
    """Whether requests mean something else by a name, so that no expert can have it."""
    return name in (ROUTER, BASE, UNIFORM, RANDOM) or _TOP.fullmatch(name) is not None


def check_names(experts: Sequence[str]) -> None:
    """Raises UserError where a domain cannot give its expert its name."""
    for name in experts:
        if is_reserved(name):
            raise UserError(
                f"domains: {name!r} cannot be a domain's name, as requests mean a gate by it ({ROUTER}, {BASE}, "
                f"{UNIFORM}, {RANDOM}, {top_gate(1)}, {top_gate(2)} and so on); change `name` in its domain.yaml"
            )
        if len(name) > MAX_NAME:
            raise UserError(
                f"domains: the name {name[:MAX_NAME]!r}... has {len(name)} characters, but names files and folders; "
                f"give one of {MAX_NAME} at most in its domain.yaml"
            )


def read_gate(value: object, experts: Sequence[str], num_experts_per_tok: int) -> Gate:
    """The gate that a request asks for.

    A name: "router", "top<k>", "base", "uniform", "random" or an expert. Weights that are the same for every
    token, {"math": 0.7, "coding": 0.3}; experts that are not named have none. Or the router among some experts,
    {"router": {"only": ["math", "law"], "k": 2}}; without `k` as many a token as the mixture has.
    Raises UserError for anything else.
    """
    if isinstance(value, Mapping):
        if set(value) == {ROUTER}:
            return _router_among(value[ROUTER], experts, num_experts_per_tok)
        return _constant(value, experts)
    return _named(value, experts, num_experts_per_tok)


def _named(name: object, experts: Sequence[str], num_experts_per_tok: int) -> Gate:
    fixed = {
        ROUTER: Gate.router(num_experts_per_tok),
        BASE: Gate.off(),
        UNIFORM: Gate.uniform(),
        RANDOM: Gate.random(),
        **{expert: Gate.expert(index) for index, expert in enumerate(experts)},
    }
    if isinstance(name, str):
        if name in fixed:
            return fixed[name]
        if (top := _TOP.fullmatch(name)) and 1 <= int(top[1]) <= len(experts):
            return Gate.router(int(top[1]))
    raise UserError(
        f"{GATE_KEY} is {name!r}; it must be {ROUTER}, {BASE}, {UNIFORM}, {RANDOM}, {top_gate(1)} to "
        f"{top_gate(len(experts))}, an expert ({', '.join(experts)}), weights by expert, or "
        f'{{"{ROUTER}": {{"{_ONLY}": [experts], "{_K}": number}}}}'
    )


def _constant(value: Mapping[object, object], experts: Sequence[str]) -> Gate:
    _known(value, experts)
    for expert, weight in value.items():
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not is_number or not 0 <= weight <= MOST_WEIGHT:  # type: ignore[operator]
            raise UserError(
                f"{GATE_KEY}: the weight of {expert} is {weight!r}; it must be a number from 0 to {MOST_WEIGHT:g}"
            )
    if not any(value.values()):
        raise UserError(f'{GATE_KEY}: no weight is above 0; the base alone is "{BASE}"')
    return Gate.constant([float(value.get(expert, 0)) for expert in experts])  # type: ignore[arg-type]


def _router_among(value: object, experts: Sequence[str], num_experts_per_tok: int) -> Gate:
    if not isinstance(value, Mapping) or not value or set(value) - {_ONLY, _K}:
        raise UserError(f"{GATE_KEY}.{ROUTER} is {value!r}; it must be an object with {_ONLY}, {_K} or both")
    only = value.get(_ONLY, list(experts))
    if not isinstance(only, list) or not only or len(set(map(str, only))) < len(only):
        raise UserError(f"{GATE_KEY}.{ROUTER}.{_ONLY} is {only!r}; it must be a list of experts, each of them once")
    _known(only, experts)
    k = value.get(_K, min(num_experts_per_tok, len(only)))
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= len(only):
        raise UserError(f"{GATE_KEY}.{ROUTER}.{_K} is {k!r}; it must be a whole number from 1 to {len(only)}")
    among = [experts.index(expert) for expert in only]
    return Gate.router(k, None if len(among) == len(experts) else among)


def _known(named: Iterable[object], experts: Sequence[str]) -> None:
    for expert in named:
        if expert not in experts:
            raise UserError(f"{GATE_KEY} names {expert!r}; the experts are {', '.join(experts)}")


def random_gates(positions: Tensor, n: int) -> Tensor:
    """The gates of `Gate.random` for tokens at these positions, [...] to one-hot [..., n], by a hash of each."""
    scores = positions[..., None] * 0x27D4EB2F * 0x2545F491 + torch.arange(n, device=positions.device) * 0x9E3779B1
    for shift, factor in ((15, 0x2C1B3C6D), (12, 0x297A2D39), (15, 0x165667B1)):
        scores = ((scores ^ (scores >> shift)) * factor) & 0x7FFFFFFF
    return torch.nn.functional.one_hot(scores.argmax(-1), n).float()
