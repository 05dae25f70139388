"""The Alpaca prompt layout: its only owner, for training, measuring and serving."""

_HEADER = "Below is an instruction that describes a task{}. Write a response that completes the request.\n\n"
_WITH_INPUT = ", paired with an input that gives further context"


def format_prompt(instruction: str, input: str) -> str:
    """The text up to and including the response header and its newline; `input` may be empty."""
    context = f"### Input:\n{input.strip()}\n\n" if input.strip() else ""
    header = _HEADER.format(_WITH_INPUT if context else "")
    return f"{header}### Instruction:\n{instruction.strip()}\n\n{context}### Response:\n"
