#!/usr/bin/env bash
# Resolves the .in files anew into both lock files (needs .venv for uv).
set -euo pipefail
cd "$(dirname "$0")/.."

resolve() {
    .venv/bin/uv pip compile --quiet --upgrade --no-header --no-annotate --generate-hashes \
        --python-version 3.11 --python-platform x86_64-unknown-linux-gnu \
        --override requirements/overrides.txt "$@"
}

UV_FIND_LINKS=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}} resolve \
    --override requirements/overrides-cpu.txt requirements/cpu.in -o requirements/cpu.lock
# PyTorch's CPU build is found outside the index, perhaps for one version of Python only: its hash would bind to that.
sed -i '/^torch==/,/[^\\]$/{s/ \\$//;/--hash=/d}' requirements/cpu.lock
# Without extra places, where a CPU build of torch might count as newer.
resolve requirements/cuda.in -o requirements/cuda.lock
