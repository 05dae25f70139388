"""The Alpaca prompt layout: its only owner, for training, measuring and serving."""

from __future__ import annotations

_HEADER = "Below is an instruction that describes a task{}. Write a response that completes the request.\n\n"
_WITH_INPUT = ", paired with an input that gives further context"
_SLOT = "\0"

# One turn renders to what `format_prompt` makes. Further turns repeat the headers without the opening sentence. A
# system message opens the first instruction: the layout has no place of its own for it.
_TEMPLATE = """\
{{%- set ns = namespace(system='') -%}}
{bos}{opening}
{{%- for message in messages -%}}
{{%- if message.role in ('system', 'developer') -%}}
{{%- set ns.system = ns.system + message.content | trim + '\\n\\n' -%}}
{{%- elif message.role == 'assistant' -%}}
{{{{- message.content | trim + '\\n\\n' -}}}}
{{%- else -%}}
{{{{- {before} + ns.system + message.content | trim + {after} -}}}}
{{%- set ns.system = '' -%}}
{{%- endif -%}}
{{%- endfor -%}}
"""


def format_prompt(instruction: str, input: str) -> str:
    """The text up to and including the response header and its newline; `input` may be empty."""
    context = f"### Input:\n{input.strip()}\n\n" if input.strip() else ""
    header = _HEADER.format(_WITH_INPUT if context else "")
    return f"{header}### Instruction:\n{instruction.strip()}\n\n{context}### Response:\n"


def alpaca_template(bos: str = "") -> str:
    """A Jinja chat template whose single user turn is exactly `format_prompt(content, "")`.

    bos: text that the tokenizer puts before a prompt by itself, which a chat template has to write out.
    """
    opening_and_before, after = format_prompt(_SLOT, "").split(_SLOT)
    opening, header, rest = opening_and_before.partition("### Instruction:")
    return _TEMPLATE.format(
        bos=f"{{{{- {bos!r} -}}}}" if bos else "",
        opening=f"{{{{- {opening!r} -}}}}",
        before=repr(header + rest),
        after=repr(after),
    )
