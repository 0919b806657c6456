"""Measured costs, apart from the results: scores are the same in every run, times are not."""

from apet.models.registry import devices_of, slug
from apet.study.cells import Job
from apet.study.measurements import measurements

# A PLM on several devices is not measured, because each process would time its own part.
MEASUREMENTS = {
    str(measurement.record_file(ResultPaths(Path("results")))): measurement
    for measurement in measurements(GRID.cells)
    if GRID.study.measure_costs and devices_of(GRID.models[measurement.model]) == 1
}
# With allow_missing=true, nothing is measured either.
RECORDS = [r for r in MEASUREMENTS if Path(r).exists() or not ALLOW_MISSING]
MEASURED_COSTS = "results/measured_costs"
# It exists if the tables and the figure belong to this study and, with allow_missing=true, to these finished cells.
COSTS_PUBLISHED = str(
    published_marker(Path(MEASURED_COSTS), GRID.id, MISSING if ALLOW_MISSING else ())
)

# Tables of deleted records are made again.
if workflow.is_main_process and not all(Path(record).exists() for record in RECORDS):
    Path(COSTS_PUBLISHED).unlink(missing_ok=True)


rule costs:
    input:
        ancient(STUDY),
        COSTS_PUBLISHED if RECORDS else [],


for record, measurement in MEASUREMENTS.items():

    rule:
        name:
            f"measure_{slug(measurement.model)}"
        input:
            study=ancient(STUDY),
            plm=ancient(GRID.plm_record(measurement.model)),
            task=ancient(f"{GRID.task_folder(measurement.task)}/task.json"),
            # After training, which would disturb the times. Later training is no reason to measure again.
            cells=[] if Path(record).exists() else all_cells,
        output:
            record,
        log:
            f"results/logs/measure/{slug(measurement.model)}.log",
        conda:
            "../../envs/apet.yaml"
        resources:
            measuring=1,  # the local profile lets one measurement run at a time
            mem_mb=more_each_attempt(
                COSTS.memory_mb(Job(measurement.model, measurement.cells))
            ),
        params:
            model=measurement.model,
            device=lambda wildcards, resources: device_of(resources),
        shell:
            "apet measure --resolved {input.study:q} --model {params.model:q} --results-dir results"
            " --device {params.device:q} > {log:q} 2>&1"


rule tabulate_costs:
    input:
        study=ancient(STUDY),
        results=ancient(PUBLISHED),
        records=ancient(RECORDS),
    output:
        COSTS_PUBLISHED,
    log:
        "results/logs/costs.log",
    conda:
        "../../envs/apet.yaml"
    shell:
        "apet costs --resolved {input.study:q} --results-dir results > {log:q} 2>&1"
