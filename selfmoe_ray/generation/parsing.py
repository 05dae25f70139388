"""From a completion's text to a task; the inverse of `prompts.render_task`."""

from __future__ import annotations

import re

from selfmoe_ray.generation.prompts import INPUT_LABEL, INSTRUCTION_LABEL, RESPONSE_LABEL

# Base models write the label of a missing input all the same, with one of these after it.
_NO_INPUT = re.compile(r"[(\[<]?(?:n/?a|none|no input|empty|noinput|-)[)\]>]?\.?", re.IGNORECASE)
_INPUT = re.compile(rf"^{INPUT_LABEL}", re.MULTILINE)
# Where the model goes on to answer its own task; the answer is asked for separately, greedily.
_ANSWER = re.compile(rf"^(?:{RESPONSE_LABEL}|Output:|Answer:|Solution:)", re.MULTILINE)
_OTHER_TASK = re.compile(rf"^#|^{INSTRUCTION_LABEL}", re.MULTILINE)


def parse_task(text: str) -> tuple[str, str] | None:
    """The instruction and input of a brainstormed completion; None where it is malformed.

    The text continues an instruction label. Malformed: no instruction, two inputs, or another
    header or instruction inside.
    """
    task = _ANSWER.split(text, maxsplit=1)[0]
    instruction, *inputs = (piece.strip() for piece in _INPUT.split(task))
    if not instruction or len(inputs) > 1 or _OTHER_TASK.search(task):
        return None
    input = inputs[0] if inputs else ""
    return instruction, "" if _NO_INPUT.fullmatch(input) else input


def parse_response(text: str) -> str:
    """The response of a completion that continues a response label."""
    return text.strip()
