# `make` alone says what there is. Every command installs what it lacks, once.
PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3.11)
BIN := $(CURDIR)/.venv/bin
STAMP := .venv/installed
# Two processes fit on a laptop: each has one thread, and up to 3 GB. All tests of a file share one, as they share fixtures.
JOBS ?= 2
PYTEST := python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder
export PATH := $(BIN):$(PATH)
.PHONY: help demo check test test-counts test-paper lint hooks

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' Makefile

demo: $(STAMP) ## everything from nothing to pictures: the whole graph at the scale of params.yaml
	@words=$$(LC_ALL=C git rev-parse --git-dir 2>&1 >/dev/null) || { echo "$$words"; case "$$words" in \
		*"not a git repository"*) echo "DVC works in a git repository: run 'git init' here first.";; esac; exit 1; }
	@psi4d doctor
	dvc repro
	@echo
	@echo "pictures   metrics/contact_sheet.jpg (source, driving, result, other views, depth); data/evaluate/report.html has the videos"
	@echo "numbers    metrics/*.json: dvc metrics show"
	@echo "curves     dvc plots show"
	@echo "costs      psi4d doctor"
	@echo "next       dvc exp run -S train.substitute_q=0.5, after '. .venv/bin/activate'"

check: lint ## style, imports, types and the quick tests, in two minutes
	$(PYTEST) -m "not (process or slow or paper)" $(ARGUMENTS)

lint: $(STAMP) ## style, imports and types alone
	ruff check .
	ruff format --check .
	lint-imports --no-logo
	pyrefly check --summary=none

test: $(STAMP) ## all tests but those of the published sizes; options of pytest in ARGUMENTS
	$(PYTEST) $(ARGUMENTS)

test-paper: $(STAMP) ## the published sizes: half an hour and up to 16 GiB
	python -m pytest -q -s -m paper $(ARGUMENTS)

test-counts: $(STAMP) ## every stage at the published counts with small networks: started, killed, resumed
	OMP_NUM_THREADS=1 python -m tests.counts

hooks: ## let git run `make check` before every push
	@hook=$$(git rev-parse --git-path hooks)/pre-push; \
	if [ -e "$$hook" ] && ! cmp -s .ci/pre-push "$$hook"; then echo "$$hook is there already: add 'make check' to it."; exit 1; fi; \
	install -D -m 755 .ci/pre-push "$$hook" && echo "$$hook runs 'make check'"

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "psi4d needs Python 3.11; $(PYTHON) is another one or missing. Install python3.11, or say: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import ctypes; [ctypes.CDLL(name) for name in ("libGL.so.1", "libgthread-2.0.so.0")]' 2>/dev/null || \
		{ echo "OpenCV needs two system libraries. On Debian or Ubuntu: apt-get install libgl1 libglib2.0-0"; exit 1; }
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv || \
		{ rm -rf .venv; echo "The environment could not be made. On Debian or Ubuntu: apt-get install python3.11-venv"; exit 1; }
	.venv/bin/python -m pip install --disable-pip-version-check -r requirements.lock
	.venv/bin/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)
