# make demo   draws a small street world, trains, fine-tunes and evaluates on it, and shows a table and pictures
# make test   runs the tests, as many at a time as there are cores (at most 8)
# make benchmark   runs all comparisons of speed on a CPU, on a machine that should do nothing else: about twenty minutes
#                  (on a GPU: .venv/bin/python benchmarks/run_all.py --device cuda, at most seven minutes)
# Each does all its own set-up in .venv/ on a fresh machine with python3 (3.11 or newer) and make.

PYTHON ?= python3

.PHONY: demo test benchmark
demo: .venv/installed
	.venv/bin/python -m demo

test: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -n auto --maxprocesses 8 --dist worksteal

benchmark: .venv/installed
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/benchmarks.txt
	.venv/bin/python benchmarks/run_all.py

.venv/installed: requirements.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: no $(PYTHON); install Python 3.11 or newer, or name it: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is too old ($$($(PYTHON) --version)); install Python 3.11 or newer, or name it: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "error: $(PYTHON) lacks venv; on Debian or Ubuntu: apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@
