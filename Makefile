# Everything starts from a bare machine: each target makes .venv and installs what it needs, once.
#   make serve                serve the bundled checkpoint on 127.0.0.1:8000
#   make test                 every test; make check: format, lint, types, import rules
#   make check-native         the kernels' tests under AddressSanitizer; what it finds: build/sanitized/report.*
#   make cov                  every test, with the coverage of service and training by lines and branches
#   make lock                 the versions that installs keep to, resolved anew
#   make check-gpu            the engine's invariants and figures on a CUDA GPU; skipped where none is
#   make check-big            a text of a gigabyte prepared in 600 MB of memory; needs 6 GB of disk
#   make check-llama          GGUF exports held against llama.cpp, which is compiled for minutes first
#   make check-deploy         docker compose up, a worker killed in mid-stream; what k8s/ renders; skipped where no engine is
#   make bench DATA=FILE      the figures; DATA: a copy of Tiny-Shakespeare where there is no network; CPUS=0: on one core
#   make load                 locust against a fleet of this machine, with a Redis of its own; USERS=200 SECONDS=60
#   make chaos                every fault case, and a seeded mix of faults over STREAMS=1000 streams; SEED=1
#   make install INDEX=cpu    choose torch's build: cpu, cu130, ... or the address of a package index
#   make install LOCK=        the newest versions that pyproject.toml allows, not those of requirements.lock

PYTHON ?= python3.11
INDEX ?=
HOST ?= 127.0.0.1
PORT ?= 8000
USERS ?= 200
SECONDS ?= 60
STREAMS ?= 1000
SEED ?= 1
BIN := .venv/bin
KERNELS := $(wildcard service/engine/kernels/*.?pp)
SANITIZED := build/sanitized
SANITIZE := -fsanitize=address -fno-omit-frame-pointer -g
INDEX_URL := $(if $(findstring ://,$(INDEX)),$(INDEX),https://download.pytorch.org/whl/$(INDEX))
LOCK ?= requirements.lock
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q $(if $(INDEX),--extra-index-url $(INDEX_URL)) \
	$(if $(LOCK),-c $(LOCK))

.PHONY: install serve test cov check check-native check-gpu check-big check-llama check-deploy fmt lock bench load chaos clean

install: .venv/.installed
serve: install
	$(BIN)/minigpt serve --host $(HOST) --port $(PORT)
test: .venv/.installed-dev
	$(BIN)/pytest $(ARGS)
cov: .venv/.installed-dev
	$(BIN)/pytest --cov $(ARGS)
check: .venv/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
check-native: .venv/.installed-dev
	rm -rf $(SANITIZED) && mkdir -p $(SANITIZED)/source
	cp -r pyproject.toml README.md LICENSE service training $(SANITIZED)/source
	CFLAGS="$(SANITIZE)" CXXFLAGS="$(SANITIZE)" LDFLAGS=-fsanitize=address \
	$(PIP) --no-deps --no-cache-dir --target $(SANITIZED)/package $(SANITIZED)/source
	PYTHONPATH=$(SANITIZED)/package MINIGPT_SANITIZED=$(SANITIZED)/package \
	ASAN_OPTIONS=detect_leaks=0:log_path=$(CURDIR)/$(SANITIZED)/report \
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so)" \
	$(BIN)/pytest -o pythonpath="$(SANITIZED)/package ." \
	tests/service/engine/backends/test_native_paged.py tests/service/engine/backends/test_native_slots.py \
	tests/service/engine/backends/test_samplers.py tests/service/engine/kernels
check-gpu: .venv/.installed-dev
	$(BIN)/pytest -n 0 -rs tests/gpu
	@if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; \
	then $(BIN)/minigpt bench engine --device cuda; else echo 'bench engine --device cuda: skipped, no CUDA GPU here'; fi
check-big: .venv/.installed-dev
	$(BIN)/pytest -n 0 -m big tests/training/data
check-llama: .venv/.installed-dev
	$(PIP) llama-cpp-python
	$(BIN)/pytest -n 0 -rs tests/training/exchange/test_llama_cpp.py
check-deploy: .venv/.installed-dev
	$(BIN)/pytest -n 0 -rs -m 'deploy or not deploy' tests/deploy
lock: | $(BIN)/python
	$(BIN)/python -m pip install -q uv
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --upgrade -q \
	--no-emit-index-url --no-annotate --no-header | grep -vE '^(cuda|nvidia|triton)' > $(LOCK)  # torch pins its own
fmt: .venv/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
bench: .venv/.installed-dev
	$(BIN)/minigpt bench engine $(if $(CPUS),--cpus $(CPUS))
	$(BIN)/minigpt bench http $(if $(CPUS),--cpus $(CPUS))
	$(BIN)/minigpt bench train $(if $(CPUS),--cpus $(CPUS)) $(if $(DATA),--data $(DATA))
load: .venv/.installed-dev
	$(BIN)/python -m tests.load.run --users $(USERS) --seconds $(SECONDS)
chaos: .venv/.installed-dev
	$(BIN)/pytest -n 1 -m '' tests/faults
	$(BIN)/pytest -n 1 -m chaos tests/service
	$(BIN)/python -m tests.faults.chaos --streams $(STREAMS) --seed $(SEED)
clean:
	rm -rf .venv build *.egg-info service/engine/kernels/*.so .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv .venv
.venv/.installed: pyproject.toml $(LOCK) $(KERNELS) | $(BIN)/python
	$(PIP) -e '.[train]'
	@touch $@
.venv/.installed-dev: pyproject.toml $(LOCK) $(KERNELS) | $(BIN)/python
	$(PIP) -e '.[dev]'
	@touch $@ .venv/.installed
