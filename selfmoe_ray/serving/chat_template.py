"""The Alpaca layout as a chat template, for bases that have none and for the experts, who were trained on it."""

from __future__ import annotations

from selfmoe_ray.training.template import format_prompt

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
