"""Snakemake as it is, but for the Slurm plugin's patience: python tests/slurm/impatient.py ARGUMENTS

The plugin waits 10 s longer after each look at the queue that finds nothing finished, and no option changes that. It
would be most of a test's time.
"""

import sys

from snakemake.cli import main
from snakemake_executor_plugin_slurm import Executor

Executor.next_seconds_between_status_checks = property(lambda executor: 1, lambda executor, seconds: None)
main(sys.argv[1:])
