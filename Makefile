# The two commands: `make demo` and `make test`. Each sets up .venv/ if needed.
PYTHON ?= python3
DEVICE ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)
DEVICE := $(DEVICE)
ifeq ($(filter $(DEVICE),cpu cuda),)
$(error DEVICE is cpu or cuda, found '$(DEVICE)')
endif

LOCK := requirements/$(DEVICE).lock
STAMP := .venv/installed-$(DEVICE)-$(shell cat $(LOCK) pyproject.toml | sha256sum | cut -c1-16)

# Every Ray worker and vLLM process imports thousands of modules: keep their bytecode.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo serve setup test test-serving test-faults lint docs lock audit

demo: $(STAMP)
	.venv/bin/python jobs/pipeline.py --config jobs/configs/demo.yaml

# The newest finished run behind the OpenAI API, until Ctrl-C; makes the demo's where there is none.
serve: $(STAMP)
	@ls runs/*/mixse/manifest.json >/dev/null 2>&1 || $(MAKE) demo
	@.venv/bin/python jobs/serve.py

setup: $(STAMP)

test: lint
	.venv/bin/python -m pytest -m "not slow and not serving and not faults"
	.venv/bin/python -m pytest -m slow

# Engines under the vLLM plugin; longer than `make test` may take.
test-serving: $(STAMP)
	.venv/bin/python -m pytest -m serving

# Engines, actors, drivers and nodes that go away in the midst of a run, on several Ray nodes of this machine.
test-faults: $(STAMP)
	.venv/bin/python -m pytest -m faults

lint: $(STAMP)
	.venv/bin/ruff check .
	.venv/bin/mypy

# The pages that are made from the code.
docs: $(STAMP)
	.venv/bin/python -m selfmoe_ray.commands.configuration >docs/configuration.md
	.venv/bin/python -m selfmoe_ray.engine.patches >docs/patches.md

lock: $(STAMP)
	requirements/lock.sh

# Known vulnerabilities among the locked packages; asks a public database.
audit: $(STAMP)
	requirements/audit.sh $(LOCK)

$(STAMP):
	PYTHON=$(PYTHON) requirements/install.sh $(DEVICE)
	rm -f .venv/installed-*
	touch $@
