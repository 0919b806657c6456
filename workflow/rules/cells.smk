"""Training and evaluation: blocks of cells of one (model, task), each cell a declared output."""


def metrics_of(cells):
    return [f"results/cells/{cell.path}/metrics.json" for cell in cells]


rule cells:
    input:
        metrics_of(GRID.cells),


for block in GRID.blocks():

    rule:
        name:
            f"train_{block.model}_{block.task}_{block.number}"
        input:
            study=ancient(STUDY),
            plm=ancient(f"{GRID.plm_folder(block.model)}/pretraining.json"),
            task=ancient(f"{GRID.task_folder(block.task)}/task.json"),
        output:
            # Kept before and after a failure: the worker trains only what is not complete.
            [update(metrics) for metrics in metrics_of(block.cells)],
        log:
            f"results/logs/train/{block.model}/{block.task}-{block.number}.log",
        priority: GRID.size(block.model)
        conda:
            "../../envs/apet.yaml"
        params:
            plm=GRID.plm_folder(block.model),
            task=GRID.task_folder(block.task),
            cells=[cell.path for cell in block.cells],
        shell:
            "apet train --study {input.study} --plm {params.plm} --data {params.task}"
            " --cells results/cells --runs results/runs {params.cells} > {log} 2>&1"
