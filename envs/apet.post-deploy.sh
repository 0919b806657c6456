#!/usr/bin/env bash
# Snakemake runs this inside the new environment, in the root of the repository.
set -euo pipefail
python -m pip install --no-deps .
