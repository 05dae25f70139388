"""One mixture under every gate: `python examples/gates.py runs/demo/mixse`."""

from __future__ import annotations

import argparse
from pathlib import Path

from selfmoe_ray.base_model import load_tokenizer
from selfmoe_ray.domains.prompt import format_prompt
from selfmoe_ray.mixture.checkpoint import load_mixse
from selfmoe_ray.mixture.systems import system_title, systems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mixse", type=Path, nargs="?", default=Path("runs/demo/mixse"), help="(%(default)s)")
    parser.add_argument("--task", default="A box holds 12 eggs. How many eggs are in 5 boxes?")
    parser.add_argument("--tokens", type=int, default=40, help="of each answer (%(default)s)")
    arguments = parser.parse_args()

    model = load_mixse(arguments.mixse)
    tokenizer = load_tokenizer(str(arguments.mixse))
    inputs = tokenizer(format_prompt(arguments.task, ""), return_tensors="pt")
    prompt_tokens = inputs.input_ids.shape[1]
    for name, gate in systems(model.spec).items():
        output = model.generate(**inputs, gate=gate, max_new_tokens=arguments.tokens, do_sample=False)
        print(f"{system_title(name)}: {tokenizer.decode(output[0, prompt_tokens:], skip_special_tokens=True).strip()}")

    with model.record_gates() as passes:
        model(**inputs)
    # [layers, batch, tokens, n] a pass.
    print("MiXSE's mean gates over the prompt, layer by layer, of", *model.spec.experts)
    for layer, gates in enumerate(passes[0][:, 0].mean(1).tolist()):
        print(layer, *(f"{weight:.2f}" for weight in gates))


if __name__ == "__main__":
    main()
