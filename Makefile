# `make run` and `make test` are all that a newcomer needs. Each first creates the environment in .venv.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Installation compiles nothing, because most modules are never imported; the others are compiled on first import.
# Many containers set PYTHONDONTWRITEBYTECODE, which would compile PyTorch in every job (7 s).
unexport PYTHONDONTWRITEBYTECODE
PIP    := $(BIN)/python -m pip install --quiet --no-compile
LOCKED := --no-deps --require-hashes
UV     := $(BIN)/uv pip install --quiet --python $(BIN)/python
# uv does not read pip's configuration, so pass it the index that pip uses, if one is set.
INDEX  := $(BIN)/python -m pip config list | sed -n "s/^[^=]*\.index-url='\(.*\)'/\1/p" | head -n 1
# uv is several times faster than pip, with the same checks. pip is used if uv fails or has no wheel for the platform.
BY_UV  := $(PIP) $(LOCKED) --only-binary :all: -r envs/installer.lock && \
	UV_DEFAULT_INDEX="$${UV_DEFAULT_INDEX:-$$($(INDEX))}" $(UV) $(LOCKED) --no-build-isolation -r envs/requirements.lock && \
	$(UV) --no-deps --no-build-isolation --editable .
BY_PIP := $(PIP) $(LOCKED) --no-build-isolation --use-pep517 -r envs/requirements.lock && \
	$(PIP) --no-deps --no-build-isolation --editable .
# pip installs torch, because its configuration may name a folder with a smaller build than the index has.
# Another build of torch: make run TORCH_INDEX=https://download.pytorch.org/whl/cpu (or …/cu130)
TORCH_INDEX ?=
STUDY  ?= params.yaml
SLURM  ?= yes
CHROMIUM ?= yes
MOUNTS ?= yes
SPACE  := $(subst ,, )
WITHOUT := $(strip $(if $(filter no,$(SLURM)),slurm) $(if $(filter no,$(CHROMIUM)),chromium) $(if $(filter no,$(MOUNTS)),mounts))
ACTIVE := PATH="$(CURDIR)/$(BIN):$$PATH"

.PHONY: help run test check coverage lint docs lock clean

help:
	@echo "make run       set up, run the study in $(STUDY), draw figures, write the report"
	@echo "make test      set up, run all tests. SLURM=no skips those that start Slurm (as root),"
	@echo "                 CHROMIUM=no those that open the report in a browser (root can install it),"
	@echo "                 MOUNTS=no those that mount small or read-only disks (as root)"
	@echo "make check     set up, run the tests that take no more than seconds each: no root, server or browser"
	@echo "make coverage  make test with a table of uncovered lines; fails below 90 %"
	@echo "make lint      ruff, pydoclint, snakefmt, mypy, import-linter, wording, snakemake --lint"
	@echo "make docs      build the documentation site in docs/_build"
	@echo "make lock      update envs/*.lock from pyproject.toml with uv; UPGRADE=--upgrade takes newer versions"
	@echo "make clean     delete results and .venv (data and models stay)"

$(VENV)/.ready: envs/build.lock envs/installer.lock envs/requirements.lock envs/torch.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "apet needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Run: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(LOCKED) -r envs/build.lock
	@$(BY_UV) || { echo "uv failed (see above). pip installs the packages instead, which takes longer." >&2; $(BY_PIP); }
	$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -r envs/torch.lock
	@touch $@

run: $(VENV)/.ready
	$(ACTIVE) snakemake --profile workflow/profiles/local --config params=$(STUDY)
	@echo
	@echo "figures  results/figures/*.svg, *.png, with the numbers behind each in *.csv"
	@echo "tables   results/tidy.csv (one row per replicate), results/tables (means, differences, findings: md, csv, tex)"
	@echo "costs    results/measured_costs (time, memory and bytes of each method next to its score: md, csv, tex, figure)"
	@echo "answer   results/findings.md, results/report.html"

test: $(VENV)/.ready
	$(ACTIVE) pytest --numprocesses 2 --no-loadscope-reorder $(COVERAGE) $(if $(WITHOUT),-m "not ($(subst $(SPACE), or ,$(WITHOUT)))")

check: $(VENV)/.ready
	$(ACTIVE) pytest --numprocesses 2 --no-loadscope-reorder -m "not slow"

coverage: COVERAGE := --cov --cov-report=term
coverage: test

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pydoclint --quiet src
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pre-commit run wording --all-files
	$(ACTIVE) snakemake --lint --directory "$$(mktemp -d)" --config params="$(CURDIR)/params.yaml"

docs: $(VENV)/.ready
	$(ACTIVE) sphinx-build -qW --keep-going docs docs/_build

# uv keeps the locked versions if they still satisfy the requirements.
LOCK := UV_CUSTOM_COMPILE_COMMAND='make lock' uv --config-file envs/lock.toml pip compile --quiet
lock:
	$(LOCK) --all-extras pyproject.toml --constraint envs/torch.lock --output-file envs/requirements.lock $(UPGRADE)
	$(LOCK) envs/build.in --constraint envs/requirements.lock --output-file envs/build.lock $(UPGRADE)
	$(LOCK) envs/installer.in --output-file envs/installer.lock $(UPGRADE)

clean:
	rm -rf $(VENV) results .snakemake
