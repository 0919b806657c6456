"""From cells to tables, findings and figures, in one job: results of one study stand together or not at all."""

from apet.figures import FIGURES

TABLES = expand(
    "results/{name}",
    name=[
        "tidy.parquet",
        "tidy.csv",
        "tidy_columns.csv",
        "findings.json",
        "findings.md",
        "findings_sources.csv",
        "missing.csv",
        "metrics.json",
    ],
) + expand(
    "results/tables/{table}.{form}",
    table=["methods", "differences", "findings"],
    form=["md", "tex"],
)
# Those that Snakemake's own report shows too.
SHOWN = ["results/tables/methods.csv", "results/tables/differences.csv"]
TASKS = "results/tasks.csv"


rule results:
    input:
        TABLES,
        SHOWN,
        TASKS,
        expand(
            "results/figures/{figure}.{form}",
            figure=FIGURES,
            form=["svg", "png", "csv"],
        ),


rule aggregate:
    # It leaves results/costs.csv and report.html too, which are none of its outputs, for times differ from run to run.
    input:
        study=STUDY,
        cells=all_cells,
    output:
        TABLES,
        report(SHOWN, caption="../report/table.rst", category="Tables"),
        report(TASKS, caption="../report/tasks.rst", category="Tables"),
        report(
            expand("results/figures/{figure}.svg", figure=FIGURES),
            caption="../report/figure.rst",
            category="Figures",
        ),
        expand("results/figures/{figure}.{form}", figure=FIGURES, form=["png", "csv"]),
    log:
        "results/logs/aggregate.log",
    conda:
        "../../envs/apet.yaml"
    params:
        allow_missing="--allow-missing" if ALLOW_MISSING else [],
    shell:
        "apet results --resolved {input.study:q} --results-dir results {params.allow_missing:q} --out-dir results"
        " > {log:q} 2>&1"
