# `make run` and `make test` are all a newcomer needs: each makes the environment in .venv first.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Another build of torch: make run TORCH_INDEX=https://download.pytorch.org/whl/cpu (or …/cu130)
TORCH_INDEX ?=
STUDY  ?= params.yaml
SLURM  ?= yes
CHROMIUM ?= yes
SPACE  := $(subst ,, )
WITHOUT := $(strip $(if $(filter no,$(SLURM)),slurm) $(if $(filter no,$(CHROMIUM)),chromium))
ACTIVE := PATH="$(CURDIR)/$(BIN):$$PATH"

.PHONY: help run test lint clean

help:
	@echo "make run     set up, run the study of $(STUDY), draw figures and the report"
	@echo "make test    set up, run all tests; SLURM=no without those that start a Slurm, as root,"
	@echo "               CHROMIUM=no without those that open the report in a browser, which root can install"
	@echo "make lint    ruff and snakefmt"
	@echo "make clean   remove results and .venv (data and PLMs stay)"

$(VENV)/.ready: envs/requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "apet needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Say make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -r envs/requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

run: $(VENV)/.ready
	$(ACTIVE) snakemake --profile workflow/profiles/local --config params=$(STUDY)
	@echo
	@echo "figures  results/figures/*.svg, *.png, with the numbers behind each in *.csv"
	@echo "tables   results/tidy.csv (one row a replicate), results/tables (means, differences, findings: md, csv, tex)"
	@echo "answer   results/findings.md, results/report.html"

test: $(VENV)/.ready
	$(ACTIVE) pytest --numprocesses 2 --no-loadscope-reorder $(if $(WITHOUT),-m "not ($(subst $(SPACE), or ,$(WITHOUT)))")

lint: $(VENV)/.ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/snakefmt --check Snakefile workflow

clean:
	rm -rf $(VENV) results .snakemake
