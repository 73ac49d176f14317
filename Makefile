# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
# A torch that is there already (a GPU build, say) is kept: pass VENV_FLAGS=--system-site-packages to see it from .venv.
VENV_FLAGS ?=

.PHONY: install demo test clean

install: .venv/installed

.venv/installed: pyproject.toml constraints/cpu.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV_FLAGS) .venv
	if $(BIN)/python -c "import torch" 2>/dev/null; \
	then $(BIN)/python -m pip install -q -e ".[export,dev]"; \
	else $(BIN)/python -m pip install -q -e ".[export,dev]" -c constraints/cpu.txt; fi
	touch $@

demo: install
	$(BIN)/unflicker demo outputs/demo

# One thread per worker: two OpenMP threads that share a core with anything else are slower than one.
test: export OMP_NUM_THREADS := 1
test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2

clean:
	rm -rf .venv outputs
