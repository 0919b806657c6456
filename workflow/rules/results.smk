"""Tables, findings and figures from cells, in one job, so that they always belong to one study."""

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
# Also in Snakemake's report.
SHOWN = ["results/tables/methods.csv", "results/tables/differences.csv"]
TASKS = "results/tasks.csv"


rule results:
    input:
        PUBLISHED,
        TABLES,
        SHOWN,
        TASKS,
        expand(
            "results/figures/{figure}.{form}",
            figure=FIGURES,
            form=["svg", "png", "csv"],
        ),


rule aggregate:
    # results/costs.csv and report.html are not outputs, because they contain times, which differ between runs.
    input:
        study=ancient(STUDY),
        cells=all_cells,
    output:
        PUBLISHED,
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
