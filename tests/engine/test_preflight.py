"""What no mixture can be made of is refused by its files; what can be made to work passes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from selfmoe_ray.base_model import resolve
from selfmoe_ray.engine import preflight
from selfmoe_ray.engine.preflight import check_base, registered
from selfmoe_ray.errors import UserError
from tests.faulty_bases import add_token, edited, with_adapter, with_code

VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "mixture of experts": (
        {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 2},
        r"MixtralForCausalLM is itself a mixture of experts .*; give a dense model",
    ),
    "another mixture of experts": (
        {
            "model_type": "qwen3_moe",
            "architectures": ["Qwen3MoeForCausalLM"],
            "num_experts": 2,
            "moe_intermediate_size": 32,
        },
        "is itself a mixture of experts",
    ),
    "images": (
        {
            "model_type": "gemma3",
            "architectures": ["Gemma3ForConditionalGeneration"],
            "text_config": {"hidden_size": 64},
            "vision_config": VISION,
        },
        r"config\.json: Gemma3ForConditionalGeneration is a text model inside a model of images or sound",
    ),
    "state space": (
        {
            "model_type": "falcon_h1",
            "architectures": ["FalconH1ForCausalLM"],
            "mamba_d_ssm": 64,
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
        },
        r"FalconH1ForCausalLM has convolutions .*\(model\.layers\.0\.mamba\.conv1d\)",
    ),
    "quantised": (
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        r"config\.json: quantization_config has 'gptq'; .* bfloat16 or float32",
    ),
    "encoder and decoder": (
        {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True},
        r"config\.json: is_encoder_decoder is true \(T5ForConditionalGeneration\)",
    ),
    "no list of layers": (
        {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]},
        "has no list of decoder layers|of type Conv1D",
    ),
    "unheard of": ({"model_type": "unheard_of"}, "cannot read .*config.json: .*unheard_of.*(\n.*)*trust_remote_code"),
    "wrong type": ({"hidden_size": "wide"}, r"cannot read .*config\.json"),
    "without a head": (
        {"architectures": ["LlamaModel"]},
        r"config\.json: architectures has 'LlamaModel', which vLLM .* write 'LlamaForCausalLM'",
    ),
    "pad beyond the embedding": (
        {"pad_token_id": 320},
        r"config\.json: pad_token_id is 320, but vocab_size is 320: .* below 320, or to null",
    ),
    "EOS beyond the embedding": ({"eos_token_id": [1, 400]}, "eos_token_id is 400, but vocab_size is 320"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_another_kind_of_model_is_refused_by_its_config(
    kind: str, tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    changes, message = KINDS[kind]
    folder = edited(tiny_model_dir("llama"), tmp_path, changes)
    with pytest.raises(UserError, match=message):
        check_base(resolve(str(folder)))


def _no_eos(folder: Path) -> str:
    edited(folder, folder, tokenizer_config={"eos_token": ...})
    return r"tokenizer_config\.json: there is no eos_token"


def _new_eos(folder: Path) -> str:
    add_token(folder, "eos_token", "<end>")
    return "eos_token is '<end>' with id 320, but the model has 320 embeddings"


def _no_tokenizer(folder: Path) -> str:
    (folder / "tokenizer.json").unlink()
    return "cannot read .*tokenizer files|makes no tokens of a text"


def _larger_tokenizer(folder: Path) -> str:
    edited(folder, folder, {"vocab_size": 300, "eos_token_id": 1})
    return "has 320 tokens, but the model has 300 embeddings"


def _broken_generation_config(folder: Path) -> str:
    (folder / "generation_config.json").write_text('{"temperature": ')
    return r"cannot read .*generation_config\.json"


@pytest.mark.parametrize("damage", [_no_eos, _new_eos, _no_tokenizer, _larger_tokenizer, _broken_generation_config])
def test_files_that_would_fail_later_are_named(
    damage: Callable[[Path], str], tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    folder = edited(tiny_model_dir("llama"), tmp_path / "base")
    message = damage(folder)
    with pytest.raises(UserError, match=message):
        check_base(resolve(str(folder)))


def _sampling_values(folder: Path) -> None:
    edited(folder, folder, generation_config={"temperature": 0.9, "top_p": 0.6})


def _beam_values(folder: Path) -> None:
    edited(folder, folder, generation_config={"early_stopping": True})


def _no_architectures(folder: Path) -> None:
    edited(folder, folder, {"architectures": ...})


def _new_pad(folder: Path) -> None:
    add_token(folder, "pad_token", "<new pad>")


@pytest.mark.parametrize("oddity", [_sampling_values, _beam_values, _no_architectures, _new_pad])
def test_what_can_be_made_to_work_passes(
    oddity: Callable[[Path], None], tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    folder = edited(tiny_model_dir("llama"), tmp_path / "base")
    oddity(folder)
    outline = check_base(resolve(str(folder)))
    assert outline.architectures == ["LlamaForCausalLM"]
    assert outline.tokenizer.pad_token_id < outline.embedded_tokens == 320


def test_an_adapter_beside_full_weights_is_left_out(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    import torch

    from selfmoe_ray.base_model import load_model

    folder = with_adapter(tiny_model_dir("llama"), tmp_path / "base")
    base = resolve(str(folder))
    check_base(base)
    loaded, plain = (load_model(path, "float32") for path in (base.path, str(tiny_model_dir("llama"))))
    assert {name: float(value.sum()) for name, value in loaded.state_dict().items()} == {
        name: float(value.sum()) for name, value in plain.state_dict().items()
    }
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"])
def test_every_supported_family_passes(family: str, tiny_model_dir: Callable[..., Path]) -> None:
    outline = check_base(resolve(str(tiny_model_dir(family))))
    assert outline.context_length == 512


def test_no_weight_is_read_and_nothing_written(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    folder = edited(tiny_model_dir("llama"), tmp_path / "base")
    base = resolve(str(folder))
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    check_base(base)
    assert before == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    (folder / "model.safetensors").unlink()
    assert {each.device.type for each in check_base(base).model.parameters()} == {"meta"}


def test_code_of_a_base_runs_for_the_check_only_when_asked_for(
    tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    folder = str(with_code(tiny_model_dir("llama"), tmp_path / "base"))
    with pytest.raises(UserError, match="trust_remote_code"):
        check_base(resolve(folder))
    assert type(check_base(resolve(folder, trust_remote_code=True)).model).__name__ == "OwnModel"


def test_what_vllm_has_models_of_is_read_from_its_source() -> None:
    text, multimodal = registered(preflight._TEXT), registered(preflight._MULTIMODAL)
    assert {"LlamaForCausalLM", "Gemma3ForCausalLM", "Qwen3ForCausalLM"} <= text
    assert "Gemma3ForConditionalGeneration" in multimodal - text
    assert registered("_NO_SUCH_TABLE") == frozenset()


@pytest.mark.parametrize(
    ("rope", "context"),
    [
        ({"rope_type": "default", "rope_theta": 1e4}, 512),
        ({"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}, 2048),
        (
            {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 128,
            },
            512,
        ),
    ],
)
def test_the_context_is_what_engines_take(
    rope: dict[str, Any], context: int, tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    folder = edited(tiny_model_dir("llama"), tmp_path / "base", {"rope_parameters": rope})
    assert check_base(resolve(str(folder))).context_length == context
