"""One rung from nothing to an ordinary Hugging Face folder, with the same bytes however often it was interrupted."""

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
from apet.models.checkpoint_files import PRETRAINING, write_origin
from apet.models.families import family_of
from apet.models.inventory import inventory_of
from apet.models.ladder import PRETRAIN_VERSION, LadderModel, ladder_model_digest
from apet.models.pretraining.losses import draws_for, heldout_loss, initialise, training_loss
from apet.models.pretraining.muon import Muon
from apet.models.pretraining.packing import heldout_rows, training_rows, unigram_entropy
from apet.models.pretraining.tokenizer import TOKENIZER_FILES, check_tokenizer

POINTS = 20
"""Points of the recorded loss curve."""

STORED = torch.bfloat16
"""Type of the weights in a rung's folder. Training is in float32, and so is everything that is computed with a rung."""

KEEP_EVERY = 30.0
"""Seconds of work that a killed run may lose."""


def pretrain(
    rung: LadderModel,
    recipe: PretrainingConfig,
    corpus_folder: Path,
    tokenizer_folder: Path,
    out_folder: Path,
    run_record: Path | None = None,
) -> None:
    """Write `out_folder` whole: weights (safetensors in STORED), config.json, the tokenizer, and pretraining.json.

    Its bytes are a function of rung, recipe, corpus and tokenizer on one class of machine, where
    `apet.training.runtime.make_deterministic` was called before. A killed run leaves a hidden file beside
    `out_folder`, from which the next goes on to the same bytes. `run_record`: a file for what differs between runs
    (seconds, host, versions). DataError for a corpus or tokenizer that is absent, or does not fit the recipe.
    """
    start = time.monotonic()
    tokenizer = _tokenizer(tokenizer_folder, recipe)
    rows = training_rows(corpus_folder, tokenizer, recipe)
    heldout = heldout_rows(corpus_folder, tokenizer, recipe.block_size)
    corpus = read_corpus_record(corpus_folder)["digest"]
    key = digest([ladder_model_digest(rung, recipe, corpus), file_digest(tokenizer_folder / TOKENIZER_FILES[0])])
    kept = out_folder.parent / f".{out_folder.name}{STATE}"
    run = PretrainingState.new(rung, recipe)
    run.train(rows, kept, key)
    run.round_weights()
    record = {"version": PRETRAIN_VERSION, "corpus": corpus, **run.record(rows, heldout)}
    _save(run.model, tokenizer_folder, record, out_folder)
    kept.unlink(missing_ok=True)
    if run_record:
        took = {"seconds": round(time.monotonic() - start, 1), "host": platform.node(), "versions": versions()}
        write_json(run_record, {"rung": rung.name, **took})


@dataclass
class PretrainingState:
    """A rung in training. `losses`: one number a step so far, so that their count is the step to go on from."""

    rung: LadderModel
    recipe: PretrainingConfig
    model: PreTrainedModel
    optimizers: tuple[Optimizer, ...]
    losses: list[float] = field(default_factory=list)

    @classmethod
    def new(cls, rung: LadderModel, recipe: PretrainingConfig) -> PretrainingState:
        config = AutoConfig.for_model(**rung.config(recipe))
        family = family_of(config.model_type)
        torch.manual_seed(seed_for("initial", recipe.seed, rung.name))
        model = family.class_of(config)(config)
        initialise(model)
        # The library's fused attention takes twice as long for short rows and narrow heads.
        model.set_attn_implementation("eager")
        family.install_kernels(model)
        return cls(rung, recipe, model.train(), optimizers_for(model, recipe))

    def train(self, rows: Tensor, kept: Path, key: str) -> None:
        """All steps that are left over rows [steps · batch, length + 1]; progress is kept in the file `kept`."""
        recipe = self.recipe
        self._load(kept, key)
        last = time.monotonic()
        tokens = recipe.batch_size * recipe.block_size
        with StepProgress(self.rung.name, recipe.steps, len(self.losses), tokens) as progress:
            for step in range(len(self.losses), recipe.steps):
                self.losses.append(self._step(step, rows[step * recipe.batch_size :][: recipe.batch_size].long()))
                progress.step(self.losses[-1])
                if time.monotonic() - last >= KEEP_EVERY:
                    self._keep(kept, key)
                    last = time.monotonic()

    @torch.no_grad()
    def round_weights(self) -> None:
        """Round the weights to STORED, so that what is measured is what is written."""
        for parameter in self.model.parameters():
            parameter.copy_(parameter.to(STORED))

    def record(self, rows: Tensor, heldout: Tensor) -> dict[str, Any]:
        """What became of the rung, its sizes counted from shapes with tied weights once, its losses in nats a token."""
        sizes = inventory_of(self.model)
        loss, targets = heldout_loss(self.model.eval(), heldout)
        return {
            "rung": asdict(self.rung),
            "recipe": asdict(self.recipe),
            "tokens": rows[:, 1:].numel(),
            "parameters": sizes.parameters,
            "non_embedding": sizes.non_embedding,
            "heldout": {
                "tokens": targets.numel(),
                "loss": round(loss, 6),
                "unigram_entropy": round(unigram_entropy(rows, targets, self.recipe.vocab_size), 6),
            },
            "curve": _curve(self.losses, self.recipe),
        }

    def _step(self, step: int, rows: Tensor) -> float:
        share = rate_share(step, self.recipe)
        draws = draws_for(self.recipe.seed, step)
        loss = training_loss(self.model, rows, self.recipe.is_causal(step), draws)
        loss.backward()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = share * group["peak"]
            optimizer.step()
            optimizer.zero_grad()
        return loss.item()

    def _keep(self, kept: Path, key: str) -> None:
        buffer = io.BytesIO()
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        state = {"key": key, "model": self.model.state_dict(), "optimizers": optimizers, "losses": self.losses}
        torch.save(state, buffer)
        content = buffer.getvalue()
        write_bytes(kept, bytes_digest(content).encode() + content)

    def _load(self, kept: Path, key: str) -> None:
        """Go on from a state file of this very run, if there is one; what cannot be used is said."""
        if not kept.is_file():
            return
        stored = kept.read_bytes()
        checksum, content = stored[:64], stored[64:]
        if bytes_digest(content).encode() != checksum:
            return _not_used(f"{kept}: damaged")
        state = torch.load(io.BytesIO(content), weights_only=True)
        if state["key"] != key:
            return _not_used(f"{kept}: kept for another rung, recipe, corpus or tokenizer")
        self.model.load_state_dict(state["model"])
        for optimizer, values in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        self.losses = state["losses"]


def optimizers_for(model: PreTrainedModel, recipe: PretrainingConfig) -> tuple[Optimizer, ...]:
    """Muon (Jordan 2024) for the matrices of the blocks, AdamW for words (embeddings and head), biases and norms.

    Tables of positions go with biases. Every group has its highest rate as `peak`.
    """
    words = {model.get_input_embeddings().weight, model.get_output_embeddings().weight}
    tables = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    others = [p for p in model.parameters() if p not in words]
    groups = [
        {"params": [p for p in model.parameters() if p in words], "peak": recipe.embedding_lr},
        {"params": [p for p in others if p.ndim != 2 or p in tables], "peak": recipe.scalar_lr},
    ]
    matrices = [p for p in others if p.ndim == 2 and p not in tables]
    # Three of Muon's five iterations gave the same loss at a sixteenth less time.
    muon = Muon([{"params": matrices, "peak": recipe.muon_lr}])
    return AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0, fused=True), muon


def rate_share(step: int, recipe: PretrainingConfig) -> float:
    """The share of its peak that a rate has at a step: up in a line over the warmup, then down to 0 by the end."""
    warmup = recipe.warmup_ratio * recipe.steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    left = (recipe.steps - step) / (recipe.steps - warmup)
    return left if recipe.lr_scheduler_type == "linear" else (1 - math.cos(math.pi * left)) / 2


def _not_used(what: str) -> None:
    print(f"{what}, not used", file=sys.stderr, flush=True)


def _tokenizer(folder: Path, recipe: PretrainingConfig) -> PreTrainedTokenizerBase:
    check_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if len(tokenizer) > recipe.vocab_size:
        raise DataError(f"{folder}: {len(tokenizer)} words, and the recipe's vocabulary is {recipe.vocab_size}.")
    return tokenizer


def _curve(losses: list[float], recipe: PretrainingConfig) -> list[dict[str, float]]:
    """Means of the training loss over equal spans of steps, with the tokens seen by the end of each."""
    edges = sorted({len(losses) * point // POINTS for point in range(POINTS + 1)})
    spans = [(end, losses[start:end]) for start, end in pairwise(edges)]
    each = recipe.batch_size * recipe.block_size
    return [{"tokens": end * each, "loss": round(sum(span) / len(span), 4)} for end, span in spans]


def _save(model: PreTrainedModel, tokenizer_folder: Path, record: dict[str, Any], out_folder: Path) -> None:
    with atomic_dir(out_folder) as folder:
        model.to(STORED)  # type: ignore[arg-type]  # the library's decorator hides the model itself
        model.save_pretrained(folder)
        # Other libraries load what the configuration says, and are to compute in float32 too.
        model.config.dtype = torch.float32
        model.config.save_pretrained(folder)
        # The library makes its weights readable to their owner alone.
        (folder / "model.safetensors").chmod(0o644)
        for name in TOKENIZER_FILES:
            shutil.copyfile(tokenizer_folder / name, folder / name)
        write_origin(folder, PRETRAINING, record)
