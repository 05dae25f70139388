"""DeepSpeed as the training loop uses it: its engine, and the state from which a stopped trainer goes on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from selfmoe_ray.engine import patches
from selfmoe_ray.errors import UserError
from selfmoe_ray.mixture.model import MixtureModel

CHECKPOINT_TAG = "state"
_TRAINED = "trained"


def import_deepspeed() -> Any:
    """The deepspeed module, told to use the device that torch sees and to compile nothing."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    import deepspeed

    patches.checked(patches.NO_COMPILED_COLLECTIVE)["deepspeed_shm_comm"] = False
    return deepspeed


def make_engine(model: MixtureModel, groups: Sequence[dict[str, Any]], zero_stage: int, micro_batch_size: int) -> Any:
    """The engine that trains the parameter groups of a mixture by AdamW; rows of a forward pass: micro_batch_size."""
    deepspeed = import_deepspeed()
    config = {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": 1,
        # The number of micro-batches differs between steps: `engine.step()` alone ends one.
        "managed_gradient_accumulation": False,
        "zero_optimization": {"stage": zero_stage, "overlap_comm": False},
        # Its default of 1 is a norm over all learners, which would couple them.
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    if zero_stage == 3:
        _split(model, deepspeed, config)
    optimizer = torch.optim.AdamW(groups, fused=True)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    return engine


def _split(model: MixtureModel, deepspeed: Any, config: dict[str, Any]) -> None:
    """Take parameter after parameter to the device and keep this worker's share there, as `initialize` would only
    do with all of them at once."""
    deepspeed.zero.Init(module=model, config_dict_or_path=config)
    device = deepspeed.accelerator.get_accelerator().current_device_name()
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))


def save_state(engine: Any, folder: Path, state: dict[str, Any]) -> None:
    """Write what is trained, the optimizer's state, and this; every worker calls it with a folder of its own."""
    state = {**state, _TRAINED: _trained(engine)}
    engine.save_checkpoint(str(folder), tag=CHECKPOINT_TAG, client_state=state, exclude_frozen_parameters=True)


def load_state(engine: Any, folder: Path) -> dict[str, Any]:
    """Read what `save_state` of as many workers wrote. Raises UserError where a part of it is missing or damaged.

    DeepSpeed itself goes on without the optimizer's state, or with untrained weights, where a file lacks them.
    """
    if not (folder / CHECKPOINT_TAG).is_dir():
        raise _damaged(folder, "it holds no state")
    shares = len(list((folder / CHECKPOINT_TAG).glob("*optim_states.pt")))
    if engine.zero_optimization() and shares != engine.dp_world_size:
        raise _damaged(folder, f"it has the optimizer's state of {shares} of {engine.dp_world_size} workers")
    try:
        _, state = engine.load_checkpoint(str(folder), tag=CHECKPOINT_TAG, load_module_strict=False)
    except (OSError, EOFError, RuntimeError, ValueError, UnpicklingError) as error:
        raise _damaged(folder, str(error).strip().split("\n")[0]) from error
    if not state:
        raise _damaged(folder, "it holds no state")
    # States of earlier versions do not name what is trained.
    found = set(state.get(_TRAINED, _trained(engine)))
    if differ := sorted(found ^ set(_trained(engine))):
        raise _damaged(folder, f"{differ[0]} is {'not trained here' if differ[0] in found else 'missing'}")
    return state


def _trained(engine: Any) -> list[str]:
    return [name for name, parameter in engine.module.named_parameters() if parameter.requires_grad]


def _damaged(folder: Path, reason: str) -> UserError:
    return UserError(
        f"{folder}: this training state cannot be continued: {reason}.\n"
        "  delete the run's folder checkpoints/; training then starts from its beginning"
    )
