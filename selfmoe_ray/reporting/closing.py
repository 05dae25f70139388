"""What a finished run prints last: an answer by the mixture, the experts that its tokens used, the report."""

from __future__ import annotations

from collections import Counter
from typing import Any

from selfmoe_ray.run.run_dir import RunDir


def closing(run_dir: RunDir) -> str:
    """The closing lines of a run whose measure and report are done."""
    traced = run_dir.storage.read_json(f"{run_dir.MEASURE}/answer.json")
    page = run_dir.storage.path(f"{run_dir.REPORT}/index.html")
    return f"{_answer(traced)}\n\nThe report is at {page}"


def _answer(traced: dict[str, Any]) -> str:
    answer = max(traced["answers"], key=lambda answer: (answer["finished"], len(answer["tokens"])))
    used = Counter(traced["experts"][token["expert"]] for token in answer["tokens"])
    shares = ", ".join(f"{name} {count / len(answer['tokens']):.0%}" for name, count in used.most_common())
    task = "\n".join(filter(None, (answer["instruction"], answer["input"])))
    return (
        f"\nMiXSE was asked ({answer['domain']}):\n{_indent(task)}\nIt answered:\n{_indent(answer['answer'])}\n"
        f"Top expert of its tokens: {shares or 'none, the answer is empty'}"
    )


def _indent(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.strip().splitlines())
