"""Pretraining of a ladder model to a Hugging Face folder, with the same bytes after any number of interruptions."""

from __future__ import annotations

import io
import math
import platform
import shutil
import sys
import time
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from apet.config.study_config import PretrainingConfig
from apet.core.atomic import STATE, atomic_dir, write_bytes, write_json
from apet.core.hashing import bytes_digest, digest, file_digest, seed_for, versions
from apet.core.progress import StepProgress
from apet.data.corpus import read_corpus_record
from apet.errors import DataError
from apet.models.checkpoint_files import PRETRAINING, file_digests, write_origin
from apet.models.families import Family, family_of
from apet.models.inventory import inventory_of
from apet.models.ladder import PRETRAIN_VERSION, LadderModel, ladder_model_digest
from apet.models.pretraining.losses import heldout_loss, initialize, masking_generator, training_loss
from apet.models.pretraining.muon import Muon
from apet.models.pretraining.packing import heldout_rows, training_rows, unigram_entropy
from apet.models.pretraining.tokenizer import TOKENIZER_FILES, check_tokenizer

POINTS = 20
"""Points of the recorded loss curve."""

STORED = torch.bfloat16
"""Dtype of stored weights. Training, and every computation with a ladder model, is in float32."""

CHECKPOINT_SECONDS = 30.0
"""Seconds between checkpoints."""


def pretrain(
    ladder_model: LadderModel,
    recipe: PretrainingConfig,
    corpus_folder: Path,
    tokenizer_folder: Path,
    out_folder: Path,
    run_record: Path | None = None,
) -> None:
    """Pretrain a ladder model and write weights (safetensors in STORED), config.json, tokenizer and pretraining.json.

    On one type of machine, the bytes are a function of ladder model, recipe, corpus and tokenizer, if
    `apet.training.runtime.make_deterministic` was called before. A killed run leaves a hidden checkpoint beside
    `out_folder`, from which the next run resumes to the same bytes.

    Args:
        ladder_model: Family and size.
        recipe: Pretraining settings of the study.
        corpus_folder: The corpus.
        tokenizer_folder: The tokenizer.
        out_folder: The folder to make.
        run_record: A file for facts that differ between runs (seconds, host, versions).

    Raises:
        DataError: Corpus or tokenizer are missing, or do not fit the recipe.
    """
    start = time.monotonic()
    tokenizer = _tokenizer(tokenizer_folder, recipe)
    rows = training_rows(corpus_folder, tokenizer, recipe)
    heldout = heldout_rows(corpus_folder, tokenizer, recipe.block_size)
    corpus = read_corpus_record(corpus_folder)["digest"]
    key = digest(
        [ladder_model_digest(ladder_model, recipe, corpus), file_digest(tokenizer_folder / TOKENIZER_FILES[0])]
    )
    checkpoint = out_folder.parent / f".{out_folder.name}{STATE}"
    state = PretrainingState.initial(ladder_model, recipe)
    state.train(rows, checkpoint, key)
    state.round_weights()
    record = {"version": PRETRAIN_VERSION, "corpus": corpus, **state.record(rows, heldout)}
    _save_model(state.model, tokenizer_folder, record, out_folder)
    checkpoint.unlink(missing_ok=True)
    if run_record:
        run = {"seconds": round(time.monotonic() - start, 1), "host": platform.node(), "versions": versions()}
        write_json(run_record, {"ladder_model": ladder_model.name, **run})


@dataclass
class PretrainingState:
    """A ladder model in pretraining."""

    ladder_model: LadderModel
    """Family and size."""
    recipe: PretrainingConfig
    """Pretraining settings."""
    model: PreTrainedModel
    """The library's model."""
    family: Family
    """The architecture."""
    optimizers: tuple[Optimizer, ...]
    """One optimizer for matrices and one for all other parameters."""
    losses: list[float] = field(default_factory=list)
    """Training loss of each finished step, in nats a token."""

    @classmethod
    def initial(cls, ladder_model: LadderModel, recipe: PretrainingConfig) -> PretrainingState:
        """Initialize a model and its optimizers."""
        config = AutoConfig.for_model(**ladder_model.config(recipe))
        family = family_of(config.model_type)
        torch.manual_seed(seed_for("initial", recipe.seed, ladder_model.name))
        model = family.class_of(config)(config)
        initialize(model, family)
        # Fused attention takes twice as long for short rows and narrow heads.
        model.set_attn_implementation("eager")
        family.install_kernels(model)
        return cls(ladder_model, recipe, model.train(), family, make_optimizers(model, recipe))

    def train(self, rows: Tensor, checkpoint: Path, key: str) -> None:
        """Run all remaining steps over token ids [steps · batch_size, block_size + 1], and save checkpoints."""
        recipe = self.recipe
        self.load_checkpoint(checkpoint, key)
        saved = time.monotonic()
        tokens = recipe.batch_size * recipe.block_size
        with StepProgress(self.ladder_model.name, recipe.steps, len(self.losses), tokens) as progress:
            for step in range(len(self.losses), recipe.steps):
                self.losses.append(self._step(step, rows[step * recipe.batch_size :][: recipe.batch_size].long()))
                progress.step(self.losses[-1])
                if time.monotonic() - saved >= CHECKPOINT_SECONDS:
                    self._save_checkpoint(checkpoint, key)
                    saved = time.monotonic()

    @torch.no_grad()
    def round_weights(self) -> None:
        """Round the weights to STORED, so that the held-out loss is that of the stored weights."""
        for parameter in self.model.parameters():
            parameter.copy_(parameter.to(STORED))

    def record(self, rows: Tensor, heldout: Tensor) -> dict[str, Any]:
        """Evaluate the model, and return settings, sizes and losses (nats a token) for pretraining.json."""
        sizes = inventory_of(self.model, self.family)
        loss, targets = heldout_loss(self.model.eval(), heldout)
        return {
            "ladder_model": asdict(self.ladder_model),
            "recipe": asdict(self.recipe),
            "tokens": rows[:, 1:].numel(),
            "parameters": sizes.num_params,
            "non_embedding": sizes.non_embedding_params,
            "heldout": {
                "tokens": targets.numel(),
                "loss": round(loss, 6),
                "unigram_entropy": round(unigram_entropy(rows, targets, self.recipe.vocab_size), 6),
            },
            "curve": _curve(self.losses, self.recipe),
        }

    def _step(self, step: int, rows: Tensor) -> float:
        factor = lr_factor(step, self.recipe)
        generator = masking_generator(self.recipe.seed, step)
        loss = training_loss(self.model, rows, self.recipe.is_causal(step), generator)
        loss.backward()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = factor * group["peak"]
            optimizer.step()
            optimizer.zero_grad()
        return loss.item()

    def _save_checkpoint(self, path: Path, key: str) -> None:
        buffer = io.BytesIO()
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        state = {"key": key, "model": self.model.state_dict(), "optimizers": optimizers, "losses": self.losses}
        torch.save(state, buffer)
        content = buffer.getvalue()
        write_bytes(path, bytes_digest(content).encode() + content)

    def load_checkpoint(self, path: Path, key: str) -> None:
        """Resume from a checkpoint with the same key, if there is one, and report one that cannot be used."""
        if not path.is_file():
            return
        stored = path.read_bytes()
        checksum, content = stored[:64], stored[64:]
        if bytes_digest(content).encode() != checksum:
            return _report_ignored(f"{path}: corrupt checkpoint")
        state = torch.load(io.BytesIO(content), weights_only=True)
        if state["key"] != key:
            return _report_ignored(f"{path}: checkpoint of another ladder model, recipe, corpus or tokenizer")
        self.model.load_state_dict(state["model"])
        for optimizer, values in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        self.losses = state["losses"]


def make_optimizers(model: PreTrainedModel, recipe: PretrainingConfig) -> tuple[Optimizer, ...]:
    """Make the optimizers.

    AdamW trains word embeddings, head, position embeddings, biases and norms; Muon (Jordan et al. 2024) trains all
    other matrices.

    Args:
        model: the ladder model.
        recipe: peak learning rates.

    Returns:
        AdamW and Muon. Every group has its peak learning rate as `peak`.
    """
    words = {model.get_input_embeddings().weight, model.get_output_embeddings().weight}
    tables = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    others = [p for p in model.parameters() if p not in words]
    groups = [
        {"params": [p for p in model.parameters() if p in words], "peak": recipe.embedding_lr},
        {"params": [p for p in others if p.ndim != 2 or p in tables], "peak": recipe.scalar_lr},
    ]
    matrices = [p for p in others if p.ndim == 2 and p not in tables]
    # Three iterations instead of Muon's five gave the same loss in a sixteenth less time.
    muon = Muon([{"params": matrices, "peak": recipe.muon_lr}])
    return AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0, fused=True), muon


def lr_factor(step: int, recipe: PretrainingConfig) -> float:
    """Compute the factor of the peak learning rate: a linear warmup, then a decay to 0 at the end."""
    warmup = recipe.warmup_ratio * recipe.steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    remaining = (recipe.steps - step) / (recipe.steps - warmup)
    return remaining if recipe.lr_scheduler_type == "linear" else (1 - math.cos(math.pi * remaining)) / 2


def _report_ignored(problem: str) -> None:
    print(f"{problem}, ignored", file=sys.stderr, flush=True)


def _tokenizer(folder: Path, recipe: PretrainingConfig) -> PreTrainedTokenizerBase:
    check_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if len(tokenizer) > recipe.vocab_size:
        raise DataError(
            f"{folder}: expected at most {recipe.vocab_size} words (pretraining.vocab_size), got {len(tokenizer)}. "
            "Train the tokenizer again."
        )
    return tokenizer


def _curve(losses: list[float], recipe: PretrainingConfig) -> list[dict[str, float]]:
    """Average the training loss over equal spans of steps, with the number of tokens up to the end of each."""
    edges = sorted({len(losses) * point // POINTS for point in range(POINTS + 1)})
    spans = [(end, losses[start:end]) for start, end in pairwise(edges)]
    tokens = recipe.batch_size * recipe.block_size
    return [{"tokens": end * tokens, "loss": round(sum(span) / len(span), 4)} for end, span in spans]


def _save_model(model: PreTrainedModel, tokenizer_folder: Path, record: dict[str, Any], out_folder: Path) -> None:
    with atomic_dir(out_folder) as folder:
        model.to(STORED)  # type: ignore[arg-type]  # the library's decorator hides the model itself
        model.save_pretrained(folder)
        # Other libraries load the dtype of the configuration, and should compute in float32 too.
        model.config.dtype = torch.float32
        model.config.save_pretrained(folder)
        for name in TOKENIZER_FILES:
            shutil.copyfile(tokenizer_folder / name, folder / name)
        write_origin(folder, PRETRAINING, record, file_digests(folder))
