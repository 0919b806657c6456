"""Checks of a study that need a PLM's files: whether they will load, and whether its tokenizer suits the tasks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from apet.data.task_config import Task
from apet.data.tokenization import encode, label_ids
from apet.errors import error_context
from apet.models.checkpoint_files import names_in
from apet.models.families import Family, SpecialTokens, family_of
from apet.models.loading import check_folder
from apet.models.registry import ModelSource, folder_of
from apet.models.tokenizers import read_tokenizer
from apet.study.grid import Grid


def check_tokenizer(grid: Grid, source: ModelSource, architecture: str) -> None:
    """Check the prompts and label words of a PLM's tasks if its tokenizer is on this machine, and a folder's files.

    Args:
        grid: The study.
        source: The PLM.
        architecture: `model_type` of its configuration.

    Raises:
        ModelError: A folder cannot be loaded.
        ConfigError: A prompt leaves no room for the texts.
        DataError: Label words are not distinct in the tokenizer.
    """
    model, family = source.name, family_of(architecture)
    found = _tokenizer(Path(grid.plm_folder(model)), source, family)
    if found is None:
        return
    tokenizer, special = found
    for task, max_length in _tasks(grid, model):
        with error_context(f"task {task.name}: model {model}"):
            texts: dict[str, list[str]] = {name: [] for name in task.text_columns}
            prompt = task.prompt.get(family.name, task.prompt["default"])
            encode(texts, tokenizer, prompt, max_length, before=special.before, after=special.after)
            if task.type == "classification" and source.head == "lm":
                label_ids(tokenizer, list(task.verbalizer.values()))


def _tokenizer(
    downloaded: Path, source: ModelSource, family: Family
) -> tuple[PreTrainedTokenizerBase, SpecialTokens] | None:
    """Read the tokenizer of a folder, or of a finished download."""
    if source.kind == "folder":
        return check_folder(folder_of(source), source.name, source.head)
    if not (downloaded.is_dir() and "tokenizer.json" in names_in(downloaded)):
        return None
    tokenizer = read_tokenizer(downloaded)
    return tokenizer, family.special_tokens(tokenizer)


def _tasks(grid: Grid, model: str) -> Iterator[tuple[Task, int]]:
    """Yield the tasks of a PLM with the least `max_length` of their cells."""
    lengths = {cell.training.max_length for cell in grid.cells if cell.model == model}
    for name in (task for other, task in grid.model_task_pairs if other == model):
        yield grid.tasks[name], min(*lengths, grid.tasks[name].max_length)
