# Everything that a contributor types: `make demo` to see it work, `make test`, `make lint`, `make bench`, `make docs`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PLUGINS := $(wildcard plugins/*/) $(wildcard contrib_tasks/*/)
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)

.PHONY: demo install test lint bench docs clean

install: $(VENV)/.installed

demo: install
	$(BIN)/mtcore hotel rows runs/hotel-rows --scale 0.05 --least 400 --held-out 300
	$(BIN)/mtcore plan docs/runs/demo.toml
	$(BIN)/mtcore train docs/runs/demo.toml
	@echo
	@echo "The report is runs/demo/report.html: open it in a browser. What to try next:"
	@echo "  . $(BIN)/activate"
	@echo "  mtcore serve runs/demo                              # all its tasks online, and a page: http://localhost:8000"
	@echo "  mtcore show hotel/id --run docs/runs/demo.toml      # rows as the model sees them"
	@echo "  mtcore new task refunds                             # a task of your own: docs/first-task.md"

$(VENV)/.installed: pyproject.toml constraints.txt $(wildcard plugins/*/pyproject.toml) $(wildcard contrib_tasks/*/pyproject.toml)
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit(f"mtcore needs Python 3.11 or later; $(PYTHON) is {sys.version.split()[0]}: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt pip hatchling editables setuptools wheel
	$(BIN)/python -m pip install -q -c constraints.txt $(TORCH)
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e ".[dev]" $(foreach d,$(PLUGINS),-e $(d))
	touch $@

test: install
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e ".[bench]"
	for file in tests/benchmarks/bench_*.py; do $(BIN)/python $$file || exit 1; done

docs: install
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e ".[docs]"
	$(BIN)/sphinx-build -W --keep-going -q -d build/doctrees docs build/docs

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
