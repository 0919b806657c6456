"""Training and evaluation: jobs of several cells of one PLM, and a rule for each PLM."""

from apet.models.registry import devices_of
from apet.study.resources import launch_command

# snakemake … --config logger=tensorboard (or dvclive): training curves in results/loggers.
LOGGER = ["--logger", config["logger"]] if "logger" in config else []


rule cells:
    input:
        all_cells,


for model, source in GRID.models.items():

    rule:
        name:
            f"train_{slug(model)}"
        input:
            study=ancient(STUDY),
            plm=ancient(GRID.plm_record(model)),
            tasks=lambda wildcards: ancient(
                [f"{folder}/task.json" for folder in task_folders(wildcards.job)]
            ),
        output:
            f"results/jobs/{slug(model)}/{{job}}",
        log:
            f"results/logs/train/{slug(model)}/{{job}}.log",
        wildcard_constraints:
            job="[^/]+",
        # The largest PLM first: its jobs take longest.
        priority: GRID.size(model)
        conda:
            "../../envs/apet.yaml"
        threads: devices_of(source)
        resources:
            **gpus(devices_of(source)),
            mem_mb=lambda wildcards, attempt: attempt
            * COSTS.memory_mb(JOBS[wildcards.job]),
            runtime=lambda wildcards, attempt: attempt
            * COSTS.runtime_minutes(JOBS[wildcards.job]),
        params:
            program=launch_command(devices_of(source)),
            plm=subpath(input.plm, parent=True),
            tasks=lambda wildcards: task_folders(wildcards.job),
            # Finished cells too: the job verifies and skips them.
            cells=lambda wildcards: [cell.path for cell in JOBS[wildcards.job].cells],
            device=lambda wildcards, resources: device_of(resources),
            logger=LOGGER,
        shell:
            "{params.program} train --resolved {input.study:q} --model-dir {params.plm:q} --data-dir {params.tasks:q}"
            " --results-dir results --device {params.device:q} {params.logger:q} {params.cells:q} > {log:q} 2>&1"
            " && touch {output:q}"


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
