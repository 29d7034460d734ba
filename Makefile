# make demo: everything from nothing to pictures. make test: the tests; test-paper: at the published sizes. They install what is missing, once.
PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3.11)
BIN := $(CURDIR)/.venv/bin
STAMP := .venv/installed
export PATH := $(BIN):$(PATH)
.PHONY: demo test test-paper lint

demo: $(STAMP)
	@git rev-parse --git-dir >/dev/null 2>&1 || { echo "DVC works in a git repository: run 'git init' here first."; exit 1; }
	@psi4d doctor
	dvc repro
	@echo
	@echo "pictures   metrics/contact_sheet.jpg (source, driving, result, other views, depth); data/evaluate/report.html has the videos"
	@echo "numbers    metrics/*.json: dvc metrics show"
	@echo "curves     dvc plots show"
	@echo "costs      psi4d doctor"
	@echo "next       dvc exp run -S train.substitute_q=0.5, after '. .venv/bin/activate'"

test: $(STAMP)
	python -m pytest -q

test-paper: $(STAMP)
	python -m pytest -q -s -m paper

lint: $(STAMP)
	ruff check .

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
