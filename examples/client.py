"""A client of a served mixture, on Python's standard library: `make serve`, then `python examples/client.py`.

Any OpenAI client does the same; `vllm_xargs` goes into its `extra_body`.
"""

from __future__ import annotations

import argparse
import json
import os
from typing import Any
from urllib.request import Request, urlopen

TASK = "A box holds 12 eggs. How many eggs are in 5 boxes?"


def ask(url: str, model: str, task: str, **more: Any) -> dict[str, Any]:
    """The answer of one chat request. urlopen raises HTTPError for a refusal, whose body says why."""
    body = {"model": model, "messages": [{"role": "user", "content": task}], "max_tokens": 60, "temperature": 0, **more}
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("OPENAI_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    with urlopen(Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)) as response:
        return dict(json.load(response))


def main() -> None:
    parser = argparse.ArgumentParser(description="Ask a mixture and its base, and see which expert had which token.")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="(%(default)s)")
    parser.add_argument("--model", default="demo", help="the mixture's name (%(default)s)")
    parser.add_argument("--task", default=TASK)
    arguments = parser.parse_args()

    for model in (f"{arguments.model}/base", arguments.model):
        answer = ask(arguments.url, model, arguments.task)
        print(f"{model}: {answer['choices'][0]['message']['content'].strip()}")

    traced = ask(arguments.url, arguments.model, arguments.task, vllm_xargs={"mixse_routing": "mean"})
    routing = traced["mixse_routing"]
    choice = routing["choices"][0]
    # The last token of an answer was never fed to the model and has no gates.
    for token, gates in list(zip(choice["tokens"], choice["gates"], strict=True))[choice["prompt_tokens"] :]:
        if gates:
            weight, expert = max(zip(gates, routing["experts"], strict=True))
            print(f"{token!r:20} {expert} {weight:.2f}")


if __name__ == "__main__":
    main()
