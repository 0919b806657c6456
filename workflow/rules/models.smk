"""The scale ladder: one tokenizer, and a PLM a rung."""


rule models:
    input:
        [f"{GRID.plm_folder(model)}/pretraining.json" for model in GRID.rungs],


rule tokenizer:
    input:
        ancient(f"{GRID.corpus}/corpus.json"),
    output:
        multiext(f"{GRID.tokenizer}/", "tokenizer.json", "tokenizer_config.json"),
    log:
        "results/logs/tokenizer.log",
    priority: 100
    conda:
        "../../envs/apet.yaml"
    params:
        params=PARAMS,
        corpus=GRID.corpus,
        folder=GRID.tokenizer,
    shell:
        "apet tokenizer --params {params.params} --corpus {params.corpus} --out {params.folder} > {log} 2>&1"


for model, rung in GRID.rungs.items():

    rule:
        name:
            f"pretrain_{model}"
        input:
            ancient(f"{GRID.corpus}/corpus.json"),
            ancient(f"{GRID.tokenizer}/tokenizer.json"),
        output:
            multiext(
                f"{GRID.plm_folder(model)}/",
                "pretraining.json",
                "model.safetensors",
                "config.json",
            ),
        log:
            f"results/logs/pretrain/{model}.log",
        # The largest rung first: it takes longest, and its cells do too.
        priority: GRID.size(model)
        conda:
            "../../envs/apet.yaml"
        params:
            params=PARAMS,
            model=model,
            corpus=GRID.corpus,
            tokenizer=GRID.tokenizer,
            folder=GRID.plm_folder(model),
        shell:
            "apet pretrain --params {params.params} --model {params.model} --corpus {params.corpus}"
            " --tokenizer {params.tokenizer} --out {params.folder} > {log} 2>&1"
