"""Training and evaluation: jobs of several cells of one model. Each cell is an output."""

from apet.study.resources import launch_command, num_devices

# snakemake … --config logger=tensorboard (or dvclive): training curves in results/loggers.
LOGGER = ["--logger", config["logger"]] if "logger" in config else []


rule cells:
    input:
        all_cells,


for job in GRID.jobs():

    rule:
        name:
            f"train_{job.job}"
        input:
            study=ancient(STUDY),
            plm=ancient(GRID.plm_record(job.model)),
            tasks=ancient([f"{GRID.task_folder(task)}/task.json" for task in job.tasks]),
        output:
            # `update` keeps finished cells before and after a failure: the job trains only unfinished ones.
            [update(metrics) for metrics in metrics_of(job.cells)],
        log:
            f"results/logs/train/{job.name}.log",
        priority: GRID.size(job.model)
        conda:
            "../../envs/apet.yaml"
        threads: num_devices(GRID, job)
        resources:
            **gpus(num_devices(GRID, job)),
            mem_mb=more_each_attempt(COSTS.memory_mb(job)),
            runtime=more_each_attempt(COSTS.runtime_minutes(job)),
        params:
            program=launch_command(num_devices(GRID, job)),
            plm=subpath(input.plm, parent=True),
            tasks=[GRID.task_folder(task) for task in job.tasks],
            cells=[cell.path for cell in job.cells],
            device=lambda wildcards, resources: device_of(resources),
            logger=LOGGER,
        shell:
            "{params.program} train --resolved {input.study:q} --model-dir {params.plm:q} --data-dir {params.tasks:q}"
            " --results-dir results --device {params.device:q} {params.logger:q} {params.cells:q} > {log:q} 2>&1"


rule verify:
    # Without outputs it runs whenever it is asked for: snakemake … verify --config num_cells=10
    input:
        study=ancient(STUDY),
        cells=all_cells,
    log:
        "results/logs/verify.log",
    conda:
        "../../envs/apet.yaml"
    params:
        num_cells=config.get("num_cells", 5),
        seed=config.get("seed", 1),
    shell:
        "apet verify --resolved {input.study:q} --results-dir results --num-cells {params.num_cells:q}"
        " --seed {params.seed:q} 2>&1 | tee {log:q}"
