"""PLMs: shipped ladder models, ladder models pretrained here (with one tokenizer), and downloads of other PLMs."""

from apet.models.registry import slug


rule models:
    input:
        [GRID.plm_record(model) for model in GRID.models],


rule tokenizer:
    input:
        corpus=ancient(f"{GRID.corpus}/corpus.json"),
    output:
        multiext(
            f"{GRID.tokenizer}/",
            tokenizer="tokenizer.json",
            config="tokenizer_config.json",
        ),
    log:
        "results/logs/tokenizer.log",
    priority: 100
    conda:
        "../../envs/apet.yaml"
    params:
        params=PARAMS,
        corpus=subpath(input.corpus, parent=True),
        folder=subpath(output.tokenizer, parent=True),
    shell:
        "apet train-tokenizer --params {params.params:q} --corpus-dir {params.corpus:q}"
        " --out-dir {params.folder:q} > {log:q} 2>&1"


for model in GRID.pretrained_models:

    rule:
        name:
            f"pretrain_{slug(model)}"
        input:
            corpus=ancient(f"{GRID.corpus}/corpus.json"),
            tokenizer=ancient(f"{GRID.tokenizer}/tokenizer.json"),
        output:
            multiext(
                f"{GRID.plm_folder(model)}/",
                record="pretraining.json",
                weights="model.safetensors",
                config="config.json",
            ),
        log:
            f"results/logs/pretrain/{slug(model)}.log",
        # The largest model first: its pretraining and its cells take longest.
        priority: GRID.size(model)
        conda:
            "../../envs/apet.yaml"
        resources:
            gpu=0,  # it runs on the CPU
            mem_mb=more_each_attempt(COSTS.plm_memory_mb(model)),
            runtime=more_each_attempt(COSTS.pretraining_minutes(model)),
        params:
            params=PARAMS,
            model=model,
            corpus=subpath(input.corpus, parent=True),
            tokenizer=subpath(input.tokenizer, parent=True),
            folder=subpath(output.record, parent=True),
        shell:
            "apet pretrain --params {params.params:q} --model {params.model:q} --corpus-dir {params.corpus:q}"
            " --tokenizer-dir {params.tokenizer:q} --out-dir {params.folder:q} > {log:q} 2>&1"


for model in GRID.shipped:

    rule:
        name:
            f"copy_{slug(model)}"
        output:
            multiext(
                f"{GRID.plm_folder(model)}/",
                record="pretraining.json",
                weights="model.safetensors",
                config="config.json",
            ),
        log:
            f"results/logs/snapshot/{slug(model)}.log",
        priority: GRID.size(model)
        localrule: True
        conda:
            "../../envs/apet.yaml"
        params:
            params=PARAMS,
            model=model,
            folder=subpath(output.record, parent=True),
        shell:
            "apet download-model --params {params.params:q} --model {params.model:q} --out-dir {params.folder:q}"
            " > {log:q} 2>&1"


for model, snapshot in GRID.downloaded_models.items():

    rule:
        name:
            f"snapshot_{slug(model)}"
        input:
            # PLMs in a wheel need the wheel. Others have no input.
            [
                ancient(f"data/wheels/{file}")
                for file, name in WHEELS.items()
                if name == snapshot.source.get("wheel")
            ],
        output:
            multiext(
                f"{GRID.plm_folder(model)}/",
                record="snapshot.json",
                config="config.json",
            ),
        log:
            f"results/logs/snapshot/{slug(model)}.log",
        priority: GRID.size(model)
        # Compute nodes often have no network.
        localrule: True
        conda:
            "../../envs/apet.yaml"
        params:
            params=PARAMS,
            model=model,
            folder=subpath(output.record, parent=True),
        shell:
            "apet download-model --params {params.params:q} --model {params.model:q} --wheels-dir data/wheels"
            " --out-dir {params.folder:q} > {log:q} 2>&1"
