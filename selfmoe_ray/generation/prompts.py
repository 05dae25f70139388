"""Plain completion prompts: the base model continues a list of tasks (paper, section 3.1)."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from selfmoe_ray.domains.domain import Domain
from selfmoe_ray.run.records import Seed

TASK_HEADER = "### Task"
INSTRUCTION_LABEL = "Instruction:"
INPUT_LABEL = "Input:"
RESPONSE_LABEL = "Response:"
# Tasks and responses hold no blank line, so a completion ends at the first one: whatever a base
# model writes after it belongs to the next task or strays from the list.
STOP = ("\n\n",)
_BLANK_LINES = re.compile(r"\n\s*\n")
_SEED_BITS = 31


def brainstorm_prompt(domain: Domain, shown: Sequence[Seed]) -> str:
    """What the domain asks for, then tasks without their answers; the model writes the next one.

    The text ends right after the instruction label, so that a completion is `instruction[, input]`.
    """
    requirements = "\n".join(f"- {requirement}" for requirement in domain.requirements)
    tasks = [
        f"{TASK_HEADER} {number}\n{render_task(seed.instruction, seed.input)}\n"
        for number, seed in enumerate(shown, start=1)
    ]
    return "\n".join(
        [
            f"A list of different tasks. {domain.covers}",
            f"Every task meets these requirements:\n{requirements}\n",
            *tasks,
            f"{TASK_HEADER} {len(shown) + 1}\n{INSTRUCTION_LABEL}",
        ]
    )


def respond_prefix(domain: Domain, shown: Sequence[Seed]) -> str:
    """How the domain wants tasks answered, then answered tasks.

    Constant over a round, so that the engine's prefix cache holds all but the task itself.
    """
    tasks = [f"{respond_prompt('', seed.instruction, seed.input)} {_compact(seed.output)}\n" for seed in shown]
    return "\n".join([f"Tasks with their correct responses. {domain.answer}\n", *tasks, ""])


def respond_prompt(prefix: str, instruction: str, input: str) -> str:
    """A task after `respond_prefix`, up to and including the response label."""
    return f"{prefix}{TASK_HEADER}\n{render_task(instruction, input)}\n{RESPONSE_LABEL}"


def render_task(instruction: str, input: str) -> str:
    """A task without its answer and without blank lines; no input label where there is no input."""
    lines = [f"{INSTRUCTION_LABEL} {_compact(instruction)}"]
    if input.strip():
        lines.append(f"{INPUT_LABEL} {_compact(input)}")
    return "\n".join(lines)


def draw_seeds(seeds: Sequence[Seed], count: int, *key: object) -> list[Seed]:
    """`count` distinct seeds (fewer where there are fewer) in random order; the same for the same key."""
    return random.Random(_join(key)).sample(list(seeds), min(count, len(seeds)))


def sampling_seed(*key: object) -> int:
    """A non-negative 31-bit seed for the engine's sampler; the same for the same key."""
    return random.Random(_join(key)).getrandbits(_SEED_BITS)


def _compact(text: str) -> str:
    return _BLANK_LINES.sub("\n", text.strip())


def _join(key: tuple[object, ...]) -> str:
    return "/".join(map(str, key))
