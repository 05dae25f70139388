"""What is written is read back the same, by us and by stock libraries; what is wrong is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from selfmoe_ray.base_model import BaseModel, resolve
from selfmoe_ray.config import RouterConfig
from selfmoe_ray.errors import UserError
from selfmoe_ray.mixture.checkpoint import (
    assemble_mixse,
    from_adapters,
    load_mixse,
    save_expert,
    save_mixse,
    save_router,
)
from selfmoe_ray.mixture.gate import Gate
from selfmoe_ray.mixture.merging import MergeConfig, merge_mixture
from selfmoe_ray.mixture.mixse_dir import FORMAT, MixseDir
from selfmoe_ray.mixture.model import MixtureModel
from tests.faulty_bases import edited, in_hub_cache, with_code

Make = Callable[..., MixtureModel]


@pytest.fixture
def base(tiny_model_dir: Callable[..., Path]) -> BaseModel:
    return resolve(str(tiny_model_dir("llama")))


@pytest.fixture
def model(make_mixture: Make, base: BaseModel) -> MixtureModel:
    made = make_mixture("llama", num_experts_per_tok=2)
    made.spec = made.spec.model_copy(update={"base_model": base.value, "base_hash": base.content_hash})
    return made


@torch.no_grad()
def logits(model: MixtureModel, tokens: torch.Tensor, gate: Gate | None = None) -> torch.Tensor:
    return model(input_ids=tokens, gate=gate).logits


def test_a_mixse_directory_round_trips_exactly(
    model: MixtureModel, base: BaseModel, tokens: torch.Tensor, tmp_path: Path
) -> None:
    from transformers import AutoConfig, AutoTokenizer

    save_mixse(model, tmp_path / "mixse", base)
    again = load_mixse(tmp_path / "mixse")
    assert again.spec == model.spec
    assert torch.equal(logits(again, tokens), logits(model, tokens))
    config = AutoConfig.from_pretrained(tmp_path / "mixse")
    assert config.model_type == "llama" and config.architectures == ["MixseLlamaForCausalLM"]
    assert AutoTokenizer.from_pretrained(tmp_path / "mixse")("a b").input_ids


def test_assembling_files_gives_the_same_mixture(
    model: MixtureModel, base: BaseModel, tokens: torch.Tensor, tmp_path: Path
) -> None:
    save_mixse(model, tmp_path / "saved", base)
    experts = {}
    for index, name in enumerate(model.spec.experts):
        save_expert(model, index, tmp_path / name)
        (tmp_path / name / "metrics.jsonl").write_text("{}\n")
        experts[name] = tmp_path / name
    save_router(model, tmp_path / "router")
    assemble_mixse(model.spec, experts, tmp_path / "router", tmp_path / "assembled", base)

    def files(folder: Path) -> set[str]:
        return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}

    # PEFT writes a README.md beside an adapter.
    saved = {name for name in files(tmp_path / "saved") if not name.endswith("README.md")}
    assert files(tmp_path / "assembled") == saved
    assert torch.equal(logits(load_mixse(tmp_path / "assembled"), tokens), logits(model, tokens))


def test_existing_adapters_of_different_shapes_make_a_mixture(
    load_base: Callable[..., Any], tokens: torch.Tensor, tmp_path: Path
) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    shapes: dict[str, dict[str, Any]] = {
        "law": {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
        "tax": {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"], "use_rslora": True},
    }
    for name, shape in shapes.items():
        config = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **shape)
        get_peft_model(load_base(), config).save_pretrained(str(tmp_path / name))
    model = from_adapters(load_base(), {name: tmp_path / name for name in shapes}, RouterConfig())
    assert model.spec.ranks == (4, 2)
    for index, name in enumerate(shapes):
        with torch.no_grad():
            expected = PeftModel.from_pretrained(load_base(), tmp_path / name)(input_ids=tokens).logits
        assert torch.allclose(logits(model, tokens, Gate.expert(index)), expected, atol=1e-4), name
    save_expert(model, 1, tmp_path / "again")
    again = load_file(tmp_path / "again/adapter_model.safetensors")
    assert {value.shape[0] for name, value in again.items() if "lora_A" in name} == {2}


@pytest.mark.parametrize(("field", "value"), [("use_dora", True), ("bias", "all"), ("rank_pattern", {"q_proj": 2})])
def test_adapters_that_are_more_than_lora_are_refused(
    field: str, value: Any, model: MixtureModel, load_base: Callable[..., Any], tmp_path: Path
) -> None:
    save_expert(model, 0, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, field: value}))
    with pytest.raises(UserError, match=f"adapter_config.json: {field} = .* cannot be part of a mixture"):
        from_adapters(load_base(), {"a": tmp_path}, RouterConfig())


Change = Callable[[dict[str, torch.Tensor]], Any]
EXPERT, ROUTER = "experts/math/adapter_model.safetensors", "router.safetensors"
A = "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"


def section(**values: Any) -> Callable[[Path], None]:
    """Give a directory's section other values."""

    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config["mixse"] |= values
        (folder / "config.json").write_text(json.dumps(config))

    return change


def adapter_config(**values: Any) -> Callable[[Path], None]:
    """Give the config of an expert's adapter other values."""

    def change(folder: Path) -> None:
        path = folder / "experts/math/adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def tensors(file: str, edit: Change, **metadata: str) -> Callable[[Path], None]:
    """Give a file other tensors."""

    def change(folder: Path) -> None:
        found = load_file(folder / file)
        edit(found)
        save_file({name: value.contiguous() for name, value in found.items()}, folder / file, metadata=metadata)

    return change


_make_newer = section(format=FORMAT + 1)


def _cut(found: dict[str, torch.Tensor]) -> None:
    for name in found:
        found[name] = found[name][:, :-1]


def _leave_out_a_linear(found: dict[str, torch.Tensor]) -> None:
    del found[A], found[A.replace("lora_A", "lora_B")]


def _rename(found: dict[str, torch.Tensor]) -> None:
    found["router.1.weight"] = found.pop("theta.1.weight")


def _spoil(name: str, value: float) -> Change:
    def edit(found: dict[str, torch.Tensor]) -> None:
        found[name][0, 0] = value

    return edit


def _pack(name: str) -> Change:
    def edit(found: dict[str, torch.Tensor]) -> None:
        found[name] = found[name].to(torch.float8_e4m3fn)

    return edit


def _truncate(folder: Path) -> None:
    path = folder / "experts/math/adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "no config.json; give the `mixse` directory"),
    "bad section": (section(experts=[]), "no valid `mixse` section"),
    "newer format": (_make_newer, r"mixse.format is 2, this version of selfmoe_ray reads up to 1"),
    "other base": (section(base_hash="0" * 16), "has content hash .* but this adapter or mixture was made for"),
    "no router": (lambda folder: (folder / ROUTER).unlink(), "router.safetensors: missing"),
    "router shape": (
        tensors(ROUTER, _cut),
        r"needs 2 matrices of shape \[3, 64\], the file has 2 .* \[3, 63\]: theta.0.weight has shape",
    ),
    "a layer without router": (
        tensors(ROUTER, lambda found: found.pop("theta.1.weight")),
        "router.safetensors: .*: theta.1.weight is missing",
    ),
    "another format of router": (tensors(ROUTER, _rename), "router.safetensors: .*: theta.1.weight is missing"),
    "more than a router": (
        tensors(ROUTER, lambda found: found.update(tau=torch.ones(1))),
        "router.safetensors: .*: tau has no place in it",
    ),
    "router of another base": (
        tensors(ROUTER, lambda found: None, base_model="other", base_hash="f" * 16),
        "router.safetensors: made for base model 'other'",
    ),
    "router of no numbers": (
        tensors(ROUTER, _spoil("theta.1.weight", float("nan"))),
        "router.safetensors: theta.1.weight holds values that are no finite numbers",
    ),
    "packed router": (tensors(ROUTER, _pack("theta.0.weight")), "theta.0.weight is float8_e4m3fn; give it in float32"),
    "no expert": (lambda folder: (folder / EXPERT).unlink(), "math.*missing"),
    "damaged file": (_truncate, "math/adapter_model.safetensors: damaged"),
    "half an expert": (
        tensors(EXPERT, lambda found: found.pop(A.replace("lora_A", "lora_B"))),
        r"up_proj.lora_A.weight has no .*lora_B.weight",
    ),
    "an expert without a linear": (
        tensors(EXPERT, _leave_out_a_linear),
        "layers.1.mlp.up_proj.lora_A.weight is missing, a target of adapter_config.json",
    ),
    "a linear that is no target": (
        adapter_config(target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj"]),
        "layers.0.mlp.up_proj.lora_A.weight is no target of adapter_config.json",
    ),
    "more than an expert": (
        tensors(EXPERT, lambda found: found.update({"base_model.model.lm_head.weight": torch.ones(2, 2)})),
        "base_model.model.lm_head.weight is not a plain LoRA weight",
    ),
    "an expert of no numbers": (
        tensors(EXPERT, _spoil(A, float("inf"))),
        "math/adapter_model.safetensors: .*up_proj.lora_A.weight holds values that are no finite numbers",
    ),
    "a packed expert": (tensors(EXPERT, _pack(A)), "up_proj.lora_A.weight is float8_e4m3fn"),
    "another alpha": (
        adapter_config(lora_alpha=32),
        "r is 4 and alpha 32, the mixture's config.json has 4 and 8 for 'math'",
    ),
    "another rank": (section(ranks=[4, 8, 4]), "r is 4 and alpha 8, the mixture's config.json has 8 and 8 for 'math'"),
    "no adapter config": (
        lambda folder: (folder / "experts/math/adapter_config.json").unlink(),
        "experts/math: no adapter_config.json",
    ),
    "a start that changed the base": (adapter_config(init_lora_weights="pissa_niter_4"), "init_lora_weights = 'pissa"),
    "an adapter that waits for its tokens": (adapter_config(alora_invocation_tokens=[1]), "alora_invocation_tokens"),
    "a setting of later": (adapter_config(use_something_new=True), "use_something_new = True cannot be part"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named(damage: str, model: MixtureModel, base: BaseModel, tmp_path: Path) -> None:
    save_mixse(model, tmp_path, base)
    change, message = DAMAGES[damage]
    change(tmp_path)
    with pytest.raises(UserError, match=message):
        load_mixse(tmp_path)


@pytest.mark.parametrize("damage", DAMAGES)
def test_merging_refuses_what_loading_refuses(
    damage: str, model: MixtureModel, base: BaseModel, tmp_path: Path
) -> None:
    save_mixse(model, tmp_path / "mixse", base)
    change, message = DAMAGES[damage]
    change(tmp_path / "mixse")
    with pytest.raises(UserError, match=message):
        merge_mixture(tmp_path / "mixse", tmp_path / "merged", MergeConfig(), base)
    assert not (tmp_path / "merged").exists()


def test_a_directory_says_its_format_and_one_that_does_not_is_of_the_first(
    model: MixtureModel, base: BaseModel, tmp_path: Path
) -> None:
    save_mixse(model, tmp_path, base)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["mixse"].pop("format") == FORMAT
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert MixseDir.open(tmp_path).spec == model.spec


@pytest.mark.parametrize("found", [0, -1, True, 1.0, "1", None])
def test_what_is_no_format_is_refused(found: object, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"mixse": {"format": found, "experts": ["math"]}}))
    with pytest.raises(UserError, match=r"mixse\.format is .*; it is a whole number from 1 on"):
        MixseDir.open(tmp_path)


def test_an_adapter_of_another_base_is_refused(model: MixtureModel, base: BaseModel, tmp_path: Path) -> None:
    save_mixse(model, tmp_path, base)
    path = tmp_path / "experts/math/adapter_model.safetensors"
    save_file(load_file(path), path, metadata={"base_model": "other", "base_hash": "f" * 16})
    with pytest.raises(UserError, match="made for base model 'other'"):
        load_mixse(tmp_path)


@pytest.mark.parametrize(
    ("values", "is_saved_again"),
    [({"temperature": 0.9, "top_p": 0.6}, True), ({"early_stopping": True, "repetition_penalty": 1.2}, False)],
)
def test_generation_settings_that_transformers_would_not_save_stay_in_effect(
    values: dict[str, Any],
    is_saved_again: bool,
    model: MixtureModel,
    tiny_model_dir: Callable[..., Path],
    tmp_path: Path,
) -> None:
    from transformers import GenerationConfig

    odd = resolve(str(edited(tiny_model_dir("llama"), tmp_path / "base", generation_config=values)))
    with pytest.raises(ValueError, match="GenerationConfig is invalid"):
        GenerationConfig.from_pretrained(odd.path).save_pretrained(tmp_path / "refused")
    save_mixse(model, tmp_path / "mixse", odd)
    found = GenerationConfig.from_pretrained(tmp_path / "mixse")
    assert values.items() <= found.to_dict().items() and found.eos_token_id == 1
    if is_saved_again:
        assert found.do_sample
        found.save_pretrained(tmp_path / "again")


def test_code_that_is_trusted_goes_with_the_mixture_and_runs_only_where_it_is_trusted_again(
    model: MixtureModel, tokens: torch.Tensor, tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    from transformers import AutoConfig, AutoTokenizer

    own = resolve(str(with_code(tiny_model_dir("llama"), tmp_path / "base")), trust_remote_code=True)
    model.spec = model.spec.model_copy(update={"base_model": own.value, "base_hash": own.content_hash})
    save_mixse(model, tmp_path / "mixse", own)
    config = AutoConfig.from_pretrained(tmp_path / "mixse", trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "mixse", trust_remote_code=True)
    assert (type(config).__name__, type(tokenizer).__name__) == ("OwnConfig", "OwnTokenizer")
    again = load_mixse(tmp_path / "mixse", trust_remote_code=True)
    assert type(again.base).__name__ == "OwnModel"
    assert torch.equal(logits(again, tokens), logits(model, tokens))
    with pytest.raises(UserError, match="trust_remote_code"):
        load_mixse(tmp_path / "mixse")


def test_code_that_was_not_trusted_is_not_named(
    model: MixtureModel, tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    named = {"auto_map": {"AutoConfig": "own.OwnConfig"}}
    save_mixse(model, tmp_path / "mixse", resolve(str(edited(tiny_model_dir("llama"), tmp_path / "base", named))))
    assert "auto_map" not in json.loads((tmp_path / "mixse/config.json").read_text())


def test_an_expert_finds_its_base_by_path_and_by_the_commit_of_a_hub_id(
    model: MixtureModel,
    base: BaseModel,
    tokens: torch.Tensor,
    tiny_model_dir: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from peft import AutoPeftModelForCausalLM

    def copy(origin: Path) -> Callable[[Path], object]:
        return lambda folder: shutil.copytree(origin, folder, dirs_exist_ok=True)

    old, new = "a" * 40, "b" * 40
    writers = {old: copy(tiny_model_dir("llama")), new: copy(tiny_model_dir("llama", seed=1))}
    in_hub_cache(tmp_path / "hub", "some-org/some-model", writers, main=new)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    values = {
        "path": model.spec,
        "commit": model.spec.model_copy(update={"base_model": f"some-org/some-model@{old}", "base_revision": old}),
        "newest then": model.spec.model_copy(update={"base_model": "some-org/some-model", "base_revision": old}),
    }
    for name, spec in values.items():
        model.spec = spec
        save_expert(model, 1, tmp_path / name)
        expert = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / name)).eval()
        with torch.no_grad():
            found = expert(input_ids=tokens).logits
        assert torch.allclose(found, logits(model, tokens, Gate.expert(1)), atol=1e-4), name
