"""Training and evaluation: blocks of cells of one (model, task), each cell a declared output."""

from apet.demand import memory_mb, minutes


def metrics_of(cells):
    return [f"results/cells/{cell.path}/metrics.json" for cell in cells]


rule cells:
    input:
        metrics_of(GRID.cells),


for block in GRID.blocks():

    rule:
        name:
            f"train_{block.name.replace('/', '_')}"
        input:
            study=ancient(STUDY),
            plm=ancient(GRID.plm_record(block.model)),
            task=ancient(f"{GRID.task_folder(block.task)}/task.json"),
        output:
            # Kept before and after a failure: the worker trains only what is not complete.
            [update(metrics) for metrics in metrics_of(block.cells)],
        log:
            f"results/logs/train/{block.name}.log",
        priority: GRID.size(block.model)
        conda:
            "../../envs/apet.yaml"
        resources:
            mem_mb=more_each_attempt(memory_mb(GRID, block)),
            runtime=more_each_attempt(minutes(GRID, block)),
        params:
            plm=GRID.plm_folder(block.model),
            task=GRID.task_folder(block.task),
            cells=[cell.path for cell in block.cells],
        shell:
            "apet train --study {input.study} --plm {params.plm} --data {params.task}"
            " --cells results/cells --runs results/runs {params.cells} > {log} 2>&1"


rule verify:
    # Without outputs it runs whenever it is asked for: snakemake … verify --config sample=10
    input:
        study=ancient(STUDY),
        cells=ancient(metrics_of(GRID.cells)),
    log:
        "results/logs/verify.log",
    conda:
        "../../envs/apet.yaml"
    params:
        sample=config.get("sample", 5),
        seed=config.get("seed", 1),
    shell:
        "apet verify --study {input.study} --cells results/cells --runs results/runs --sample {params.sample}"
        " --seed {params.seed} 2>&1 | tee {log}"
