"""Experts as stock PEFT adapters, the router as safetensors, and the `mixse` directory that holds both.

mixse/config.json              the base's config, architectures ["Mixse<Base>"], a `mixse` section
mixse/router.safetensors       theta.<layer>.weight [n, hidden], float32
mixse/experts/<name>/          adapter_config.json, adapter_model.safetensors
mixse/                         tokenizer and generation files of the base
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from selfmoe_ray.base_model import BaseModel, check_hash, load_model, load_tokenizer, resolve
from selfmoe_ray.config import RouterConfig
from selfmoe_ray.errors import UserError
from selfmoe_ray.mixture.model import MixtureModel, attach
from selfmoe_ray.mixture.spec import MixtureSpec

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
ROUTER_WEIGHTS = "router.safetensors"
EXPERTS = "experts"
# Of the architecture that a mixture has in vLLM, before its base's.
ARCHITECTURE_PREFIX = "Mixse"


def _adapter_key(module: str, matrix: str) -> str:
    return f"base_model.model.{module}.lora_{matrix}.weight"


def save_expert(model: MixtureModel, expert: int, folder: Path) -> None:
    """Write one expert as a stock PEFT adapter that `PeftModel.from_pretrained` loads."""
    from peft import LoraConfig, TaskType

    spec = model.spec
    rank = spec.ranks[expert]
    tensors = {}
    for name, linear in model.linears.items():
        a, b = linear.lora(expert)
        tensors[_adapter_key(name, "A")] = a.detach()[:rank].contiguous().cpu()
        tensors[_adapter_key(name, "B")] = b.detach()[:, :rank].contiguous().cpu()
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt", "base_model": spec.base_model, "base_hash": spec.base_hash}
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata=metadata)
    LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=rank,
        lora_alpha=spec.alphas[expert],
        target_modules=sorted({name.rsplit(".", 1)[1] for name in model.linears}),
        base_model_name_or_path=spec.base_model,
        inference_mode=True,
    ).save_pretrained(str(folder))


def load_expert(model: MixtureModel, expert: int, folder: Path) -> None:
    """Read a PEFT adapter into one expert; linears that it does not target stay without change.

    Raises UserError where the adapter belongs to another base or its shapes do not fit.
    """
    metadata, tensors = _read_safetensors(folder / ADAPTER_WEIGHTS)
    if metadata.get("base_hash") and model.spec.base_hash:
        _same_base(metadata["base_hash"], metadata.get("base_model", ""), model.spec, folder)
    known = {_adapter_key(name, matrix) for name in model.linears for matrix in "AB"}
    unknown = sorted(set(tensors) - known)
    if unknown:
        raise UserError(f"{folder}: {unknown[0]} has no place in this base model ({len(unknown)} such tensors)")
    rank = model.spec.ranks[expert]
    for name, linear in model.linears.items():
        a, b = linear.lora(expert)
        pair = tensors.get(_adapter_key(name, "A")), tensors.get(_adapter_key(name, "B"))
        with torch.no_grad():
            a.zero_()
            b.zero_()
            if pair[0] is None or pair[1] is None:
                continue
            _check_shape(folder, _adapter_key(name, "A"), pair[0], [rank, a.shape[1]])
            _check_shape(folder, _adapter_key(name, "B"), pair[1], [b.shape[0], rank])
            a[:rank].copy_(pair[0])
            b[:, :rank].copy_(pair[1])


def save_router(model: MixtureModel, folder: Path) -> None:
    """Write theta."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().contiguous().cpu() for name, value in model.router.state_dict().items()}
    save_file(tensors, folder / ROUTER_WEIGHTS, metadata={"format": "pt", "base_hash": model.spec.base_hash})


def load_router(model: MixtureModel, folder: Path) -> None:
    """Read theta. Raises UserError where names or shapes do not fit the model."""
    _, tensors = _read_safetensors(folder / ROUTER_WEIGHTS)
    wanted = model.router.state_dict()
    if set(tensors) != set(wanted):
        raise UserError(
            f"{folder / ROUTER_WEIGHTS}: {len(tensors)} tensors, but a router of scope "
            f"{model.spec.router.scope!r} on this base has {len(wanted)}"
        )
    for name, value in wanted.items():
        _check_shape(folder / ROUTER_WEIGHTS, name, tensors[name], list(value.shape))
    model.router.load_state_dict(tensors)


def save_mixse(model: MixtureModel, folder: Path, base: BaseModel) -> None:
    """Write the directory that transformers, vLLM and Ray Serve load; it refers to its base."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(model.spec.experts):
        save_expert(model, index, folder / EXPERTS / name)
    save_router(model, folder)
    _write_base_files(model.spec, folder, base)


def assemble_mixse(spec: MixtureSpec, experts: dict[str, Path], router: Path, folder: Path, base: BaseModel) -> None:
    """What `save_mixse` writes, from adapters and a router that are files already; loads no weights."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, adapter in experts.items():
        (folder / EXPERTS / name).mkdir(parents=True)
        for file in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
            shutil.copyfile(adapter / file, folder / EXPERTS / name / file)
    shutil.copyfile(router / ROUTER_WEIGHTS, folder / ROUTER_WEIGHTS)
    _write_base_files(spec, folder, base)


def _write_base_files(spec: MixtureSpec, folder: Path, base: BaseModel) -> None:
    """The base's tokenizer and config; AutoConfig still reads it, what is ours is in the `mixse` key."""
    from transformers import AutoConfig, GenerationConfig

    load_tokenizer(base.path).save_pretrained(str(folder))
    if (Path(base.path) / "generation_config.json").exists():
        GenerationConfig.from_pretrained(base.path).save_pretrained(str(folder))
    config = AutoConfig.from_pretrained(base.path).to_dict()
    config["architectures"] = [f"{ARCHITECTURE_PREFIX}{name}" for name in config["architectures"]]
    config["mixse"] = spec.model_dump(mode="json")
    config.pop("_name_or_path", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def read_spec(folder: Path) -> MixtureSpec:
    """The `mixse` section of a checkpoint. Raises UserError where there is none or it is wrong."""
    try:
        section = json.loads((folder / "config.json").read_text())["mixse"]
        return MixtureSpec.model_validate(section)
    except FileNotFoundError:
        raise UserError(f"{folder}: no config.json; give the `mixse` directory of a finished run") from None
    except (KeyError, json.JSONDecodeError, ValidationError) as error:
        raise UserError(f"{folder / 'config.json'}: no valid `mixse` section ({error})") from None


def load_mixse(
    folder: Path, dtype: str = "float32", device: str = "cpu", base_model: str | None = None
) -> MixtureModel:
    """Load a mixture with its base for scoring and generation.

    base_model: where the base is now, if not at the recorded value; its content hash must agree.
    """
    spec = read_spec(folder)
    base = resolve(base_model or spec.base_model)
    check_hash(spec.base_model, spec.base_hash, base)
    model = attach(load_model(base.path, dtype, device), spec)
    for index, name in enumerate(spec.experts):
        load_expert(model, index, folder / EXPERTS / name)
    load_router(model, folder)
    model.train_only([])
    return model.eval()


def from_adapters(
    base: Any,
    adapters: dict[str, Path],
    router: RouterConfig,
    num_experts_per_tok: int = 1,
    base_hash: str = "",
) -> MixtureModel:
    """A mixture of existing PEFT LoRA adapters on a loaded base, with a fresh router.

    Ranks and alphas may differ. Raises UserError for what the stacked layer cannot express
    (DoRA, biases, modules saved whole, rank patterns).
    """
    configs = [_read_adapter_config(folder) for folder in adapters.values()]
    spec = MixtureSpec(
        experts=tuple(adapters),
        ranks=tuple(config["r"] for config in configs),
        alphas=tuple(_effective_alpha(config) for config in configs),
        num_experts_per_tok=num_experts_per_tok,
        router=router,
        base_model=str(configs[0].get("base_model_name_or_path") or ""),
        base_hash=base_hash,
    )
    model = attach(base, spec)
    for index, folder in enumerate(adapters.values()):
        load_expert(model, index, folder)
    return model


def _read_adapter_config(folder: Path) -> dict[str, Any]:
    path = folder / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{folder}: no {ADAPTER_CONFIG}; give the folder of a PEFT LoRA adapter") from None
    refused = {
        "peft_type": config.get("peft_type") != "LORA",
        "use_dora": config.get("use_dora"),
        "bias": config.get("bias", "none") != "none",
        "modules_to_save": config.get("modules_to_save"),
        "rank_pattern": config.get("rank_pattern"),
        "alpha_pattern": config.get("alpha_pattern"),
    }
    for field, refuse in refused.items():
        if refuse:
            raise UserError(f"{path}: {field} = {config.get(field)!r} cannot be part of a mixture; plain LoRA can")
    return config


def _effective_alpha(config: dict[str, Any]) -> float:
    """alpha such that alpha / r is the adapter's scaling; rank-stabilised LoRA scales by alpha / sqrt(r)."""
    return config["lora_alpha"] * (config["r"] ** 0.5 if config.get("use_rslora") else 1.0)


def _read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"{path}: missing; the checkpoint is not complete") from None
    except SafetensorError as error:
        raise UserError(f"{path}: damaged ({error})") from None


def _check_shape(where: Path, name: str, found: Tensor, wanted: list[int]) -> None:
    if list(found.shape) != wanted:
        raise UserError(f"{where}: {name} has shape {list(found.shape)}, this mixture needs {wanted}")


def _same_base(found_hash: str, found_value: str, spec: MixtureSpec, folder: Path) -> None:
    if found_hash != spec.base_hash:
        raise UserError(
            f"{folder}: made for base model {found_value!r} (hash {found_hash}), "
            f"this mixture's is {spec.base_model!r} (hash {spec.base_hash})"
        )
