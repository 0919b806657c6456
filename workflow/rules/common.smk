"""The study that all rules speak of, read and checked before anything runs."""

from pathlib import Path

from snakemake.settings.enums import RerunTrigger

from apet.config import load_study
from apet.errors import ApetError
from apet.grid import Grid
from apet.store import published_study, restore

PARAMS = config.get("params", "params.yaml")

try:
    GRID = Grid(load_study(Path(PARAMS)), Path(PARAMS))
except ApetError as error:
    raise WorkflowError(str(error))

STUDY = f"results/studies/{GRID.id[:12]}.json"

# Names carry the hash of all that decides a file's bytes, so existence says it all. Snakemake's other triggers compare
# with records in .snakemake, which a checkout or a pull does not bring along.
workflow.dag_settings.rerun_triggers = frozenset({RerunTrigger.MTIME})

restore(GRID)

# The results' names are fixed: those of another study must count as outdated, however new they are.
if Path(STUDY).exists() and published_study() != GRID.id:
    Path(STUDY).touch()


localrules:
    check,


rule check:
    """Resolve every budget on every PLM from shapes alone: what cannot be run fails here, first."""
    output:
        STUDY,
    params:
        params=PARAMS,
    conda:
        "../../envs/apet.yaml"
    log:
        "results/logs/check.log",
    shell:
        "apet check --params {params.params} --out {output} > {log} 2>&1"
