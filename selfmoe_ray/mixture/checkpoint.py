"""Writes and loads mixtures: experts as stock PEFT adapters, the router as safetensors, and `mixse` directories."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from selfmoe_ray.base_model import BaseModel, check_hash, load_model, load_tokenizer, resolve
from selfmoe_ray.base_model.outline import Outline, architectures, read_config
from selfmoe_ray.base_model.resolve import split_revision
from selfmoe_ray.config import RouterConfig
from selfmoe_ray.errors import UserError
from selfmoe_ray.mixture.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, AdapterConfig, AdapterFile, adapter_key
from selfmoe_ray.mixture.decoder import decoder_linears
from selfmoe_ray.mixture.mixse_dir import (
    ARCHITECTURE_PREFIX,
    EXPERTS,
    ROUTER_WEIGHTS,
    SECTION,
    MixseDir,
    check_router,
    read_thetas,
    section_of,
    theta_key,
)
from selfmoe_ray.mixture.model import MixtureModel, attach
from selfmoe_ray.mixture.spec import MixtureSpec
from selfmoe_ray.mixture.tensor_file import write_tensors

GENERATION_CONFIG = "generation_config.json"


def save_expert(model: MixtureModel, expert: int, folder: Path) -> None:
    """Write one expert as a stock PEFT adapter that `PeftModel.from_pretrained` loads.

    Raises UserError where it holds values that are no numbers.
    """
    from peft import LoraConfig, TaskType

    spec = model.spec
    rank = spec.ranks[expert]
    tensors = {}
    for name, linear in model.linears.items():
        a, b = linear.lora(expert)
        tensors[adapter_key(name, "A")] = a.detach()[:rank].contiguous().cpu()
        tensors[adapter_key(name, "B")] = b.detach()[:, :rank].contiguous().cpu()
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / ADAPTER_WEIGHTS, tensors, spec.base_model, spec.base_hash)
    where = split_revision(spec.base_model)[0] if spec.base_revision else spec.base_model
    LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=rank,
        lora_alpha=spec.alphas[expert],
        target_modules=sorted({name.rsplit(".", 1)[1] for name in model.linears}),
        base_model_name_or_path=where,
        revision=spec.base_revision or None,
        inference_mode=True,
    ).save_pretrained(str(folder))


def load_expert(model: MixtureModel, expert: int, folder: Path) -> None:
    """Read a PEFT adapter into one expert; linears that it does not target stay without change.

    Raises UserError as `AdapterFile.check`, and for values that are no numbers.
    """
    adapter = AdapterFile(folder, expert, model.spec)
    linears = {name: [linear.lora(expert)[1].shape[0], linear.lora(expert)[0].shape[1]]
               for name, linear in model.linears.items()}  # fmt: skip
    adapter.check(linears, is_whole=True)
    with torch.no_grad():
        for parameter in model.expert_parameters(expert):
            parameter.zero_()
        for name, read_a, read_b in adapter.pairs():
            a, b = model.linears[name].lora(expert)
            a[: adapter.rank].copy_(read_a)
            b[:, : adapter.rank].copy_(read_b)


def save_router(model: MixtureModel, folder: Path) -> None:
    """Write theta. Raises UserError where it holds no finite numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().contiguous().cpu() for name, value in model.router.state_dict().items()}
    write_tensors(folder / ROUTER_WEIGHTS, tensors, model.spec.base_model, model.spec.base_hash)


def load_router(model: MixtureModel, folder: Path) -> None:
    """Read theta. Raises UserError where names or shapes do not fit the model."""
    router = model.router
    check_router(folder, model.spec, router.num_layers, router.hidden_size)
    router.load_state_dict({theta_key(index): theta for index, theta in enumerate(read_thetas(folder))})


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
    load_tokenizer(base.path, base.trust_remote_code).save_pretrained(str(folder))
    _write_generation_config(Path(base.path), folder)
    of_base = read_config(base.path, base.trust_remote_code)
    config = of_base.to_dict()
    config["architectures"] = [f"{ARCHITECTURE_PREFIX}{name}" for name in architectures(of_base)]
    config[SECTION] = section_of(spec)
    config.pop("_name_or_path", None)
    if base.trust_remote_code:
        for file in Path(base.path).glob("*.py"):
            shutil.copyfile(file, folder / file.name)
    else:
        # It names files that are not here, and that the base was loaded without.
        config.pop("auto_map", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _write_generation_config(base: Path, folder: Path) -> None:
    """The base's generation_config.json, with its values in effect; where transformers can, in a form that it saves.

    Raises UserError where the file cannot be read.
    """
    from transformers import GenerationConfig

    source = base / GENERATION_CONFIG
    if not source.exists():
        return
    try:
        config = GenerationConfig.from_pretrained(base)
    except Exception as error:
        raise UserError(f"base_model: transformers cannot read {source}: {error}; mend or remove it") from error
    for is_sampled in (config.do_sample, True):
        # Engines sample by a temperature or top_p whatever do_sample says; transformers saves them with it alone.
        config.do_sample = is_sampled
        with contextlib.suppress(ValueError):
            config.save_pretrained(str(folder))
            return
    shutil.copyfile(source, folder / GENERATION_CONFIG)


def resolve_base(spec: MixtureSpec, value: str | None = None, trust_remote_code: bool = False) -> BaseModel:
    """The base of a mixture; value: where it is now, if not at the recorded value.

    Raises UserError where it is not there, or is another one than the mixture was made for.
    """
    base = resolve(value or spec.base_model, trust_remote_code)
    check_hash(spec.base_model, spec.base_hash, base, spec.base_revision)
    return base


def check_attachable(outline: Outline) -> None:
    """Raises UserError where experts cannot be attached to a base, or a mixture's files not be made of its own.

    Both are done: on the model without values, and in a folder that is removed again.
    """
    decoder_linears(outline.model)
    spec = MixtureSpec(experts=("expert",), ranks=(1,), alphas=(1.0,))
    with tempfile.TemporaryDirectory() as folder:
        try:
            _write_base_files(spec, Path(folder), outline.base)
        except UserError:
            raise
        except Exception as error:
            # transformers raises whatever a file happens to trip when it is written again.
            raise UserError(
                f"base_model: the tokenizer and config files of {outline.base.path} cannot be written again, as a "
                f"mixture's must be: {type(error).__name__}: {error}"
            ) from error


def read_spec(folder: Path) -> MixtureSpec:
    """The spec of a `mixse` directory. Raises UserError as `MixseDir.open`."""
    return MixseDir.open(folder).spec


def load_mixse(
    folder: Path,
    dtype: str = "float32",
    device: str = "cpu",
    base_model: str | None = None,
    trust_remote_code: bool = False,
) -> MixtureModel:
    """Load a mixture with its base for scoring and generation.

    base_model: where the base is now, if not at the recorded value; its content hash must agree.
    trust_remote_code: whether Python files that come with the base may run.
    """
    spec = read_spec(folder)
    base = resolve_base(spec, base_model, trust_remote_code)
    model = attach(load_model(base.path, dtype, device, trust_remote_code), spec)
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

    Ranks and alphas may differ. Raises UserError for what the stacked layer cannot express (DoRA, biases, modules
    saved whole, rank patterns, starts that changed the base), and as `load_expert`.
    """
    configs = [AdapterConfig.read(folder) for folder in adapters.values()]
    spec = MixtureSpec(
        experts=tuple(adapters),
        ranks=tuple(config.r for config in configs),
        alphas=tuple(config.alpha for config in configs),
        num_experts_per_tok=num_experts_per_tok,
        router=router,
        base_model=configs[0].base_model,
        base_hash=base_hash,
    )
    model = attach(base, spec)
    for index, folder in enumerate(adapters.values()):
        load_expert(model, index, folder)
    return model
