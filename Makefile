# Everything starts from a bare machine: each target makes .venv and installs what it needs, once.
#   make serve                serve the bundled checkpoint on 127.0.0.1:8000
#   make test                 every test; make check: format, lint, types, import rules
#   make bench DATA=FILE      the figures; DATA: a copy of Tiny-Shakespeare where there is no network
#   make install INDEX=cpu    choose torch's build: cpu, cu130, ... or the address of a package index

PYTHON ?= python3.11
INDEX ?=
HOST ?= 127.0.0.1
PORT ?= 8000
BIN := .venv/bin
KERNELS := service/engine/kernels/step.cpp
INDEX_URL := $(if $(findstring ://,$(INDEX)),$(INDEX),https://download.pytorch.org/whl/$(INDEX))
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q $(if $(INDEX),--extra-index-url $(INDEX_URL))

.PHONY: install serve test check fmt bench clean

install: .venv/.installed
serve: install
	$(BIN)/minigpt serve --host $(HOST) --port $(PORT)
test: .venv/.installed-dev
	$(BIN)/pytest $(ARGS)
check: .venv/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
fmt: .venv/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
bench: .venv/.installed-dev
	$(BIN)/minigpt bench engine
	$(BIN)/minigpt bench http
	$(BIN)/minigpt bench train $(if $(DATA),--data $(DATA))
clean:
	rm -rf .venv build *.egg-info service/engine/kernels/*.so .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv .venv
.venv/.installed: pyproject.toml $(KERNELS) | $(BIN)/python
	$(PIP) -e '.[train]'
	@touch $@
.venv/.installed-dev: pyproject.toml $(KERNELS) | $(BIN)/python
	$(PIP) -e '.[dev]'
	@touch $@ .venv/.installed
