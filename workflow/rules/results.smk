"""From cells to tables and figures."""

from apet.figures import FIGURES

TABLES = multiext(
    "results/", "tidy.parquet", "tidy.csv", "metrics.json", "methods.md", "methods.csv"
)


rule results:
    input:
        TABLES,
        expand(
            "results/figures/{figure}.{form}",
            figure=FIGURES,
            form=["svg", "png", "csv"],
        ),


rule aggregate:
    input:
        study=STUDY,
        cells=ancient(metrics_of(GRID.cells)),
    output:
        TABLES,
    log:
        "results/logs/aggregate.log",
    conda:
        "../../envs/apet.yaml"
    shell:
        "apet aggregate --study {input.study} --cells results/cells --out results > {log} 2>&1"


rule figures:
    input:
        "results/tidy.parquet",
    output:
        report(
            expand("results/figures/{figure}.svg", figure=FIGURES),
            caption="../report/figure.rst",
            category="Figures",
        ),
        expand("results/figures/{figure}.{form}", figure=FIGURES, form=["png", "csv"]),
    log:
        "results/logs/figures.log",
    conda:
        "../../envs/apet.yaml"
    shell:
        "apet figures --tidy {input} --out results/figures > {log} 2>&1"
