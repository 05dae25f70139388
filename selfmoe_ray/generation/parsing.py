"""From a completion's text to a task; the inverse of `prompts.render_task`."""

from __future__ import annotations

import re

from selfmoe_ray.generation.prompts import INPUT_LABEL, INSTRUCTION_LABEL, RESPONSE_LABEL, TASK_HEADER

# Base models write the label of a missing input all the same, with one of these after it.
_NO_INPUT = re.compile(r"[(\[<]?(?:n/?a|none|no input|empty|noinput|-)[)\]>]?\.?", re.IGNORECASE)
_LABEL = re.compile(rf"^({INSTRUCTION_LABEL}|{INPUT_LABEL}|{RESPONSE_LABEL})", re.MULTILINE)
_HEADER = re.compile(rf"^{TASK_HEADER}\b", re.MULTILINE)


def parse_task(text: str) -> tuple[str, str] | None:
    """The instruction and input of a brainstormed completion; None where it is malformed.

    The text continues an instruction label. A response that the model adds is cut off: its own
    answer is asked for separately, greedily. Malformed: no instruction, or a label twice.
    """
    body = _HEADER.split(text, maxsplit=1)[0]
    pieces = _LABEL.split(body)
    instruction, labels, values = pieces[0].strip(), pieces[1::2], pieces[2::2]
    if RESPONSE_LABEL in labels:
        end = labels.index(RESPONSE_LABEL)
        labels, values = labels[:end], values[:end]
    if not instruction or labels not in ([], [INPUT_LABEL]):
        return None
    input = values[0].strip() if values else ""
    return instruction, "" if _NO_INPUT.fullmatch(input) else input


def parse_response(text: str) -> str:
    """The response of a completion that continues a response label."""
    return _HEADER.split(text, maxsplit=1)[0].strip()
