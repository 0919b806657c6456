"""The study as a DAG: data, PLMs, cells, results. What a study holds is said in params.yaml alone."""

from snakemake.utils import min_version

min_version("9.20")


report: "workflow/report/workflow.rst"


include: "workflow/rules/locks.smk"
include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/models.smk"
include: "workflow/rules/cells.smk"
include: "workflow/rules/results.smk"


rule all:
    default_target: True
    input:
        rules.cells.input,
        rules.results.input,


onstart:
    start()


onerror:
    shell(f"apet status --failed --resolved {STUDY} --results-dir results")
