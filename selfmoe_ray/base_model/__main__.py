"""`python -m selfmoe_ray.base_model <value>`: the local directory that a `base_model` value stands for."""

from __future__ import annotations

import argparse
import contextlib
import sys

from selfmoe_ray.base_model.resolve import resolve
from selfmoe_ray.errors import UserError


def main(argv: list[str] | None = None) -> int:
    """Print the directory; everything else goes to stderr. 2 where the value stands for none."""
    parser = argparse.ArgumentParser(description="Print the local directory of a base model, which is made if needed.")
    parser.add_argument("value", help="embedded | embedded:gemma3-270m | hub id[@revision] | directory | file.gguf")
    parser.add_argument("--trust-remote-code", action="store_true", help="also fetch a hub repository's Python files")
    arguments = parser.parse_args(argv)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            base = resolve(arguments.value, arguments.trust_remote_code)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(base.path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
