"""From cells to tables and figures, in one job: results of one study stand together or not at all."""

from apet.figures import FIGURES

TABLES = multiext("results/", "tidy.parquet", "tidy.csv", "metrics.json", "methods.md")
METHODS = "results/methods.csv"
TASKS = "results/tasks.csv"


rule results:
    input:
        TABLES,
        METHODS,
        TASKS,
        expand(
            "results/figures/{figure}.{form}",
            figure=FIGURES,
            form=["svg", "png", "csv"],
        ),


rule aggregate:
    input:
        study=STUDY,
        cells=all_cells,
    output:
        TABLES,
        report(METHODS, caption="../report/table.rst", category="Tables"),
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
    shell:
        "(apet aggregate --study {input.study} --cells results/cells --out results"
        " && apet figures --tidy results/tidy.parquet --out results/figures) > {log} 2>&1"
