"""What a GGUF file says of its architecture, as a transformers config that says all of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfmoe_ray.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PretrainedConfig

# Those whose conversion is held to the logits of the checkpoint that a file was written from; Mistral's is "llama".
ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3")
ROPE_FREQUENCIES = "rope_freqs.weight"
# Without meaning for the text model: how a scaling came about, and the vision tower that lies in another file.
_NEUTRAL = ("rope.scaling.finetuned", "vision.", "mm.")
# llama.cpp's, for a file that does not say.
_THETA = 10000.0
# Gemma's largest models scale attention by another size than the others; their files tell them by the layers alone.
_SCALED_BY_WIDTH = {"gemma2": 46, "gemma3": 62}
# Of every Llama 3.1 and later; a file has only the factors that follow from them.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@dataclass(frozen=True)
class GgufSettings:
    """A file's settings by their names without the architecture's, and its rotary factors where it has some."""

    file: Path
    architecture: str
    values: Mapping[str, Any]
    factors: NDArray[Any] | None

    @classmethod
    def read(cls, reader: Any, file: Path) -> GgufSettings:
        """Those of a gguf reader; file: what errors name. Raises UserError for an architecture not converted here."""
        fields, tensors = reader.fields, {tensor.name: tensor for tensor in reader.tensors}
        found = fields["general.architecture"].contents() if "general.architecture" in fields else None
        if found not in ARCHITECTURES:
            raise UserError(
                f"base_model: {file}: its architecture is {found!r}; {', '.join(ARCHITECTURES)} are converted here, "
                "so give the checkpoint that it was made from"
            )
        prefix = f"{found}."
        values = {
            name.removeprefix(prefix): each.contents() for name, each in fields.items() if name.startswith(prefix)
        }
        factors = tensors[ROPE_FREQUENCIES].data if ROPE_FREQUENCIES in tensors else None
        return cls(file, found, values, factors)

    def complete(self, config: PretrainedConfig) -> None:
        """Give transformers' reading of the file what it leaves out. Raises UserError for what no config can say."""
        values = self.values
        if values.get("expert_count"):
            raise self._refusal(f"it is itself a mixture of {values['expert_count']} experts; give a dense model")
        if "attention.head_count_kv" not in values:
            raise self._refusal(f"{self.architecture}.attention.head_count_kv is missing; its heads would be misread")
        self._complete_attention(config)
        self._complete_rope(config)
        stated = _stated(config)
        for name, value in values.items():
            if not name.startswith(_NEUTRAL) and not _agrees(value, stated.get(name)):
                known = f"that is {stated[name]!r} after the conversion" if name in stated else "no conversion reads it"
                raise self._refusal(f"its {self.architecture}.{name} is {value!r}, but {known}")

    def _refusal(self, reason: str) -> UserError:
        return UserError(f"base_model: {self.file}: {reason}")

    def _complete_attention(self, config: PretrainedConfig) -> None:
        values = self.values
        width = values.get("attention.key_length") or config.hidden_size // config.num_attention_heads
        if width != _head_width(config):
            config.head_dim = width
        if config.model_type in ("phi3", "mistral"):
            config.sliding_window = values.get("attention.sliding_window")
        if layers := _SCALED_BY_WIDTH.get(self.architecture):
            by_width = config.num_hidden_layers == layers
            config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads if by_width else width
        for name in ("attn_logit_softcapping", "final_logit_softcapping"):
            if name in values:
                setattr(config, name, values[name])

    def _complete_rope(self, config: PretrainedConfig) -> None:
        values, rope = self.values, _rope(config)
        rope["rope_theta"] = values.get("rope.freq_base", _THETA)
        kind = values.get("rope.scaling.type", "none")
        if kind in ("linear", "yarn"):
            rope |= {"rope_type": kind, "factor": values["rope.scaling.factor"]}
        if kind == "yarn":
            rope["original_max_position_embeddings"] = values["rope.scaling.original_context_length"]
        width, turned = _head_width(config), values.get("rope.dimension_count")
        if turned and turned != width:
            rope["partial_rotary_factor"] = turned / width
        if self.factors is not None and (self.factors != 1).any():
            rope |= self._llama3(rope["rope_theta"])

    def _llama3(self, theta: float) -> dict[str, Any]:
        """The settings whose frequencies are divided by the file's factors [rotary width / 2]."""
        import numpy as np

        assert self.factors is not None
        low, high, length = _LLAMA3.values()
        factor = float(self.factors.max())
        turns = length / (2 * math.pi * theta ** (np.arange(len(self.factors)) / len(self.factors)))
        smooth = np.clip((turns - low) / (high - low), 0, 1)
        if not np.allclose(self.factors, 1 / ((1 - smooth) / factor + smooth), rtol=1e-3):
            raise self._refusal(f"the factors of its {ROPE_FREQUENCIES} are not those of Llama 3's rotary embedding")
        return {"rope_type": "llama3", "factor": factor, **_LLAMA3}


def _rope(config: PretrainedConfig) -> dict[str, Any]:
    """The rotary settings that a file's speak of: where layers differ, those of full attention."""
    parameters: dict[str, Any] = config.rope_parameters
    return parameters.get("full_attention", parameters)


def _head_width(config: PretrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _stated(config: PretrainedConfig) -> dict[str, Any]:
    """What a config says, by the names that it has in a file."""
    rope, width = _rope(config), _head_width(config)
    kind = rope["rope_type"]
    layers = getattr(config, "layer_types", None) or []
    sliding_rope = config.rope_parameters.get("sliding_attention", rope)
    stated = {
        "context_length": config.max_position_embeddings,
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": width,
        "attention.value_length": width,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "attention.causal": True,
        "expert_count": 0,
        "expert_used_count": 0,
        "attn_logit_softcapping": getattr(config, "attn_logit_softcapping", None),
        "final_logit_softcapping": getattr(config, "final_logit_softcapping", None),
        "rope.freq_base": rope["rope_theta"],
        "rope.freq_base_swa": sliding_rope["rope_theta"],
        "rope.dimension_count": round(width * rope.get("partial_rotary_factor", 1.0)),
        "rope.scaling.type": kind if kind in ("linear", "yarn") else "none",
        "rope.scaling.factor": rope.get("factor", 1.0),
        "rope.scaling.original_context_length": rope.get(
            "original_max_position_embeddings", config.max_position_embeddings
        ),
    }
    if (window := getattr(config, "sliding_window", None)) is not None:
        stated["attention.sliding_window"] = window
    if "full_attention" in layers:
        stated["attention.sliding_window_pattern"] = layers.index("full_attention") + 1
    return stated


def _agrees(value: Any, stated: Any) -> bool:
    if isinstance(value, float) and isinstance(stated, int | float):
        return math.isclose(value, stated, rel_tol=1e-5)
    return bool(value == stated)
