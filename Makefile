# Two commands matter: `make quickstart` and `make test`. Each makes the environment it needs, once.
# `make test CPU=avx2` computes as a processor without AVX-512 does, `CPU=sse4` as one without AVX; THREADS is torch's, JOBS how
# many files of tests run beside each other.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CPU ?= native
JOBS ?= 2
THREADS ?= 1
CPU_native :=
CPU_avx2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
CPU_sse4 := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2
$(if $(filter undefined,$(origin CPU_$(CPU))),$(error CPU is native, avx2 or sse4, not $(CPU)))
PYTEST := env $(CPU_$(CPU)) OMP_NUM_THREADS=$(THREADS) $(BIN)/python -m pytest -q -n $(JOBS) --no-loadscope-reorder

.PHONY: quickstart cluster test test-slow check format clean

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; run make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Making the environment in $(VENV) (about 2.3 GB; once)…"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[data,train,dev]"
	@touch $@

quickstart: $(READY)
	@$(BIN)/mnf run recipes/quickstart.yaml

# A Spark master with two workers on this machine, to try a cluster on; Ctrl-C ends it.
cluster: $(READY)
	@$(BIN)/python -m nextflow_pipelines.spark.standalone

test: $(READY)
	@$(PYTEST) -m "not slow and not gpu"

# All of what is slow, or one part of it as in PART=2/6; tests/.slow_seconds says how long each test took.
test-slow: $(READY)
	@$(PYTEST) -m "slow and not gpu" $(if $(PART),--splits $(word 2,$(subst /, ,$(PART))) --group $(word 1,$(subst /, ,$(PART))))

check: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(READY)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:
	rm -rf runs
