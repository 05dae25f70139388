#!/usr/bin/env bash
# Makes .venv/ from a lock file: install.sh cpu|cuda. PYTHON says which interpreter (python3).
set -euo pipefail
cd "$(dirname "$0")/.."
device=$1
python=${PYTHON:-python3}
lock=requirements/$device.lock
complete=.venv/locked-$device-$(sha256sum "$lock" | cut -c1-16)

fail() { printf '%s\n' "$@" >&2; exit 1; }

check_python() {
    local found
    found=$("$python" -c 'import sys; print(".".join(map(str, sys.version_info[:3])))' 2>/dev/null) ||
        fail "Set-up: no Python at '$python'. Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ..."
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "Set-up: $python is Python $found; 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ..."
}

# uv installs in a third of pip's time but does not read pip's configuration: hand over what matters here.
export UV_FIND_LINKS=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}
export UV_EXTRA_INDEX_URL=${UV_EXTRA_INDEX_URL:-${PIP_EXTRA_INDEX_URL:-}}
export UV_INDEX_STRATEGY=unsafe-best-match

# The lock's entries of these packages, with their hashes; with -v of all but these.
entries() {
    awk -v names=" ${*#-v} " -v invert="$([ "$1" = -v ] && echo 1 || echo 0)" '
        /^[^ ]/ { split($1, part, "=="); chosen = (index(names, " " part[1] " ") > 0) != invert }
        chosen' "$lock"
}

# The lock is complete and deliberately leaves some declared requirements out, hence --no-deps.
install() {
    .venv/bin/uv pip install --python .venv/bin/python --no-deps "$@" || {
        echo "Set-up: uv did not succeed; trying pip, with its own configuration"
        .venv/bin/python -m pip install --no-deps --no-compile "$@"
    }
}

install_lock() {
    echo "Set-up: installing $(grep -c == "$lock") packages from $lock into .venv (some minutes, once)"
    "$python" -m venv --clear .venv
    entries uv >.venv/uv.txt
    .venv/bin/python -m pip install --quiet --no-deps -r .venv/uv.txt
    # By themselves: torch's CPU build has no hash in the lock, and pip asks for all or none.
    entries torch >.venv/torch.txt
    entries deepspeed >.venv/deepspeed.txt
    entries -v uv torch deepspeed >.venv/others.txt
    { install -r .venv/torch.txt && install -r .venv/others.txt; } || fail \
        "Set-up: the packages of $lock could not be installed (see above)." \
        "If torch is the one not found: set PIP_EXTRA_INDEX_URL to PyTorch's CPU wheel index and run again."
    # deepspeed's build imports torch.
    install --no-build-isolation -r .venv/deepspeed.txt
    touch "$complete"
}

check_python
[ -e "$complete" ] || install_lock
.venv/bin/python -m pip install --quiet --no-deps --no-build-isolation -e .
