"""Label words of several tokens: their probabilities against counting them out, in every family, and their training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from apet.evaluation import ClassificationObjective, LabelTrie, label_tokens, predict
from apet.training.cell import CellInputs, train_cell
from apet.training.loop import TrainingData, train
from apet.training.runtime import make_deterministic
from apet.tuning import TunedPLM, initial_theta, split_by_structure
from test_data_encoded import FIELDS, PAIRS, prepared
from test_generation import library_logits
from test_large import NOTHING, plan_of, theta_of
from test_training import RECIPE, cell, contents, rows
from tiny import CONFIGS, tiny_plm

make_deterministic()
TREES = {
    "flat": [[3], [4, 9], [5]],
    "behind a shared start": [[3, 7, 4], [3, 7, 5]],
    "two forks": [[3, 5], [3, 6, 8], [4]],
    "four forks": [[3, 5, 9], [3, 5, 1], [4, 2], [3, 6], [4, 7, 7]],
}
LABELS = [" duplicate", " not_duplicate", " not_equivalent", " not_equal", " equal", " equivalent"]


def byte_pairs(texts: Sequence[str], size: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def counted_out(labels: Sequence[Sequence[int]], logits_behind) -> torch.Tensor:
    """P of each label [labels]: token by token, among those with which a label that has begun alike goes on."""
    chances = []
    for word in labels:
        chance = 1.0
        for place, token in enumerate(word):
            ways = {other[place] for other in labels if list(other[:place]) == list(word[:place])}
            logits = {way: float(logits_behind(word[:place])[way]) for way in ways}
            chance *= math.exp(logits[token]) / sum(map(math.exp, logits.values()))
        chances.append(chance)
    return torch.tensor(chances)


def framed(family: str):
    """A tiny PLM and rows in its frame: a BERT's end with a mask and a separator."""
    plm, data = tiny_plm(family), rows(9, 1)
    if family == "bert":
        plm = replace(plm, special_tokens=replace(plm.special_tokens, after=(1, 2)))
        data = replace(data, ids=F.pad(data.ids, (0, 2)), lengths=data.lengths + 2)
        data.ids.scatter_(1, data.lengths[:, None] - 2, 1).scatter_(1, data.lengths[:, None] - 1, 2)
    return plm, data


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("family", CONFIGS)
def test_probabilities_are_those_of_the_library_s_forward_token_by_token(family, tree):
    plm, data = framed(family)
    labels = LabelTrie.of(TREES[tree])
    with TunedPLM(plm, NOTHING) as tuned:
        found = predict(tuned, [], data, labels).softmax(dim=1)
        loss = labels.loss(tuned, [], *data.batch(torch.arange(9)), torch.arange(9) % len(labels))
    expected = []
    for row in range(len(data)):
        ids = data.batch(torch.tensor([row]))[0]
        behind = lambda said: library_logits(plm, ids, torch.tensor([said], dtype=torch.long))[0]  # noqa: B023, E731
        expected.append(counted_out(TREES[tree], behind))
    expected = torch.stack(expected)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)
    right = expected[torch.arange(9), torch.arange(9) % len(labels)]
    torch.testing.assert_close(loss, -right.log().mean(), atol=1e-4, rtol=1e-4)


@st.composite
def words(draw) -> list[list[int]]:
    """Words of which none begins another."""
    found = draw(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=2, max_size=7))
    kept: list[list[int]] = []
    for word in found:
        if not any(word[: len(k)] == k or k[: len(word)] == word for k in kept):
            kept.append(word)
    return kept if len(kept) > 1 else [[0], [1]]


class Pretended:
    """Stands in for a tuned PLM: logits that depend on what was said alone, and how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def logits(self, said: Sequence[int]) -> torch.Tensor:
        return torch.randn(10, generator=torch.Generator().manual_seed(hash(tuple(said)) % 2**31))

    def __call__(self, theta, ids, lengths, chosen, said=None) -> torch.Tensor:
        self.asked += 1
        return self.logits([] if said is None else said[0].tolist())[chosen].expand(len(ids), -1)


@given(words())
def test_labels_sum_to_one_whatever_their_words(tokens):
    labels, plm, one = LabelTrie.of(tokens), Pretended(), torch.ones(1, 1, dtype=torch.long)
    chances = labels.scores(plm, [], one, one[0]).softmax(dim=1)[0]
    torch.testing.assert_close(chances, counted_out(tokens, plm.logits), atol=1e-5, rtol=1e-4)
    assert plm.asked == len(labels.nodes) < len(tokens)
    for label, chance in enumerate(chances):
        loss = labels.loss(plm, [], one, one[0], torch.tensor([label]))
        torch.testing.assert_close(loss, -chance.log(), atol=1e-4, rtol=1e-4)


def test_only_forks_on_a_right_label_s_way_are_asked_in_training():
    labels, plm, two = LabelTrie.of(TREES["four forks"]), Pretended(), torch.ones(2, 1, dtype=torch.long)
    assert len(labels.nodes) == 4  # the start, behind 3, behind 3 5, and behind 4
    labels.loss(plm, [], two, two[:, 0], torch.tensor([2, 4]))
    assert plm.asked == 2


def test_words_that_differ_at_once_are_asked_at_once():
    plm, data = framed("bloom")
    labels = LabelTrie.of(TREES["flat"])
    assert len(labels.nodes) == 1
    with TunedPLM(plm, NOTHING) as tuned, torch.no_grad():
        assert torch.equal(
            predict(tuned, [], data, labels), tuned([], *data.batch(torch.arange(9)), torch.tensor([3, 4, 5]))
        )


@pytest.mark.parametrize("loss", ["label_words", "full_vocab"])
@pytest.mark.parametrize("family", CONFIGS)
def test_training_makes_the_loss_smaller(family, loss):
    """A task that one token decides, answered by words whose second token differs."""
    plm, data = framed(family)
    plan = plan_of(plm, "lowrank")
    parts = split_by_structure(plan, initial_theta(plan, 4, plm.model.get_input_embeddings().weight))
    objective = ClassificationObjective(LabelTrie.of(TREES["behind a shared start"]))
    with TunedPLM(plm, plan) as tuned:
        before = objective.evaluate(tuned, list(parts.values()), data).score
        trained = train(tuned, parts, TrainingData(data, data, objective), replace(RECIPE, loss=loss), 1, 1.0)
        after = objective.evaluate(tuned, [trained.theta], data).score
    assert trained.losses[-1][1] < trained.losses[0][1]
    assert after.loss < before.loss and after.score >= before.score


@pytest.mark.parametrize("size", [260, 300, 320])
def test_words_of_a_real_tokenizer_that_begin_alike(size, tmp_path):
    """Few merges leave long shared beginnings, more leave short ones; a cell is trained and scored with each."""
    tokenizer = byte_pairs(LABELS * 9, size)
    task = {"task": "toy", "labels": dict(zip("abcdef", LABELS, strict=True))}
    tokens = label_tokens(task, tokenizer)
    assert len({ids[0] for ids in tokens}) < len(tokens)
    labels = LabelTrie.of(tokens)
    assert all(fork.next_index.max() + 1 == len(fork.words) > 1 for fork in labels.nodes)
    plm = replace(tiny_plm("bloom", vocabulary=len(tokenizer)), tokenizer=tokenizer)
    folder, _ = prepared(tmp_path / "data", PAIRS, **FIELDS, length=200, labels={"a": LABELS[1], "b": LABELS[2]})
    bench = CellInputs.of(plm, folder, 500)
    assert bench.data.objective.words.tokens == (tuple(tokens[1]), tuple(tokens[2]))
    small = cell("lora", "@own", draws=1, training=replace(RECIPE, max_steps=4, num_evals=2))
    for again in "ab":
        record = train_cell(small, bench, tmp_path / again)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    test = record["replicates"][0]["test"]
    assert test["n"] == 29 and test["metrics"]["accuracy"] == test["score"]


def test_a_large_plan_moves_both_forks():
    """θ reaches what is read behind a prefix, in the PLM and in its words."""
    plm, data = framed("t5")
    plan, labels = plan_of(plm, "all"), LabelTrie.of(TREES["two forks"])
    theta = theta_of(plan, 0.3)
    with TunedPLM(plm, plan) as tuned:
        moved = predict(tuned, [theta.detach()], data, labels).exp()
        labels.loss(tuned, [theta], *data.batch(torch.arange(9)), torch.ones(9, dtype=torch.long)).backward()
    with TunedPLM(plm, NOTHING) as tuned:
        assert not torch.allclose(moved, predict(tuned, [], data, labels).exp(), atol=1e-3)
    torch.testing.assert_close(moved.sum(dim=1), torch.ones(9))
    assert (theta.grad != 0).float().mean() > 0.9
