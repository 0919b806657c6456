"""Label words of several tokens."""

from __future__ import annotations

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
from tiny import CONFIGS, library_logits, tiny_plm
from toy_cells import CONFIG, cell, contents, rows
from toy_plans import NOTHING, plan_of, theta_of
from toy_splits import FIELDS, PAIRS, prepared

make_deterministic()
TREES = {
    "flat": [[3], [4, 9], [5]],
    "after a shared prefix": [[3, 7, 4], [3, 7, 5]],
    "two nodes": [[3, 5], [3, 6, 8], [4]],
    "four nodes": [[3, 5, 9], [3, 5, 1], [4, 2], [3, 6], [4, 7, 7]],
    "one continues the other": [[3], [3, 7]],
    "two continue, one of them twice": [[3, 7], [4], [3], [3, 7, 5], [3, 8]],
}
LABELS = [" duplicate", " not_duplicate", " not_equivalent", " not_equal", " equal", " equivalent"]


def byte_pairs(texts: Sequence[str], size: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def counted_out(labels: Sequence[Sequence[int]], logits_after) -> torch.Tensor:
    """Compute the probability of each label token by token, among the next tokens of labels with the same prefix.

    Where a label ends and others go on, all tokens of the vocabulary count: those that no label has end the label.
    """
    words = [list(label) for label in labels]
    chances = []
    for word in words:
        chance = 1.0
        for place in range(len(word) + 1):
            prefix = word[:place]
            nexts = {other[place] for other in words if other[:place] == prefix and len(other) > place}
            if not nexts:
                continue
            weights = dict(enumerate(logits_after(prefix).double().exp().tolist()))
            weights = weights if prefix in words else {token: weights[token] for token in nexts}
            chosen = {word[place]} if place < len(word) else weights.keys() - nexts
            chance *= sum(weights[token] for token in chosen) / sum(weights.values())
        chances.append(chance)
    return torch.tensor(chances)


def framed(family: str):
    """Return a tiny PLM, and rows with its special tokens: mask and separator at the end for BERT."""
    plm, data = tiny_plm(family), rows(9, 1)
    if family == "bert":
        plm = replace(plm, special_tokens=replace(plm.special_tokens, after=(1, 2)))
        data = replace(data, ids=F.pad(data.ids, (0, 2)), lengths=data.lengths + 2)
        data.ids.scatter_(1, data.lengths[:, None] - 2, 1).scatter_(1, data.lengths[:, None] - 1, 2)
    return plm, data


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("family", CONFIGS)
def test_predict_gives_the_probabilities_of_transformers_token_by_token(family, tree):
    plm, data = framed(family)
    labels = LabelTrie.from_tokens(TREES[tree])
    with TunedPLM(plm, NOTHING) as tuned:
        probabilities = predict(tuned, [], data, labels).softmax(dim=1)
        loss = labels.loss(tuned, [], *data.batch(torch.arange(9)), torch.arange(9) % len(labels))
    expected = []
    for row in range(len(data)):
        ids = data.batch(torch.tensor([row]))[0]
        logits_after = lambda prefix: library_logits(plm, ids, torch.tensor([prefix], dtype=torch.long))[0]  # noqa: B023, E731
        expected.append(counted_out(TREES[tree], logits_after))
    expected = torch.stack(expected)
    torch.testing.assert_close(probabilities, expected, atol=1e-5, rtol=1e-3)
    right = expected[torch.arange(9), torch.arange(9) % len(labels)]
    torch.testing.assert_close(loss, -right.log().mean(), atol=1e-4, rtol=1e-4)


@st.composite
def words(draw) -> list[list[int]]:
    """Draw different words, of which some are prefixes of others."""
    word = st.lists(st.integers(0, 2), min_size=1, max_size=4)
    return draw(st.lists(word, min_size=2, max_size=7, unique_by=tuple))


class FakeTunedPLM:
    """Tuned PLM whose logits depend only on the prefix, and which counts its forward passes."""

    def __init__(self, vocabulary: int = 10) -> None:
        self.calls, self.vocabulary = 0, vocabulary

    def logits(self, prefix: Sequence[int]) -> torch.Tensor:
        return torch.randn(self.vocabulary, generator=torch.Generator().manual_seed(hash(tuple(prefix)) % 2**31))

    def __call__(self, theta, ids, lengths, chosen, prefix=None) -> torch.Tensor:
        self.calls += 1
        logits = self.logits([] if prefix is None else prefix[0].tolist())
        return (logits if chosen is None else logits[chosen]).expand(len(ids), -1)


@given(words())
def test_label_trie_probabilities_sum_to_one(tokens):
    labels, plm, one = LabelTrie.from_tokens(tokens), FakeTunedPLM(), torch.ones(1, 1, dtype=torch.long)
    chances = labels.scores(plm, [], one, one[0]).softmax(dim=1)[0]
    torch.testing.assert_close(chances, counted_out(tokens, plm.logits), atol=1e-5, rtol=1e-4)
    assert plm.calls == len(labels.nodes) < len(tokens)
    for label, chance in enumerate(chances):
        loss = labels.loss(plm, [], one, one[0], torch.tensor([label]))
        torch.testing.assert_close(loss, -chance.log(), atol=1e-4, rtol=1e-4)


def test_label_trie_loss_computes_only_nodes_on_the_path_of_the_label():
    labels, plm, two = LabelTrie.from_tokens(TREES["four nodes"]), FakeTunedPLM(), torch.ones(2, 1, dtype=torch.long)
    assert len(labels.nodes) == 4  # the root, after 3, after 3 5, and after 4
    labels.loss(plm, [], two, two[:, 0], torch.tensor([2, 4]))
    assert plm.calls == 2


def test_label_trie_with_different_first_tokens_needs_one_forward_pass():
    plm, data = framed("bloom")
    labels = LabelTrie.from_tokens(TREES["flat"])
    assert len(labels.nodes) == 1
    with TunedPLM(plm, NOTHING) as tuned, torch.no_grad():
        assert torch.equal(
            predict(tuned, [], data, labels), tuned([], *data.batch(torch.arange(9)), torch.tensor([3, 4, 5]))
        )


@pytest.mark.parametrize("loss", ["label_words", "full_vocab"])
@pytest.mark.parametrize("family", CONFIGS)
def test_train_with_label_words_of_several_tokens_reduces_the_loss(family, loss):
    """One token decides the task, and the label words differ in their second token."""
    plm, data = framed(family)
    plan = plan_of(plm, "lowrank")
    parts = split_by_structure(plan, initial_theta(plan, 4, plm.model.get_input_embeddings().weight))
    objective = ClassificationObjective(LabelTrie.from_tokens(TREES["after a shared prefix"]))
    with TunedPLM(plm, plan) as tuned:
        before = objective.evaluate(tuned, list(parts.values()), data).score
        trained = train(tuned, parts, TrainingData(data, data, objective), replace(CONFIG, loss=loss), 1, 1.0)
        after = objective.evaluate(tuned, [trained.theta], data).score
    assert trained.losses[-1][1] < trained.losses[0][1]
    assert after.loss < before.loss and after.score >= before.score


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("family", CONFIGS)
def test_full_vocab_loss_is_the_mean_over_tokens_and_ends_of_transformers(family, tree):
    """The end of a word that another one continues counts as a token: any that continues no label."""
    plm, data = framed(family)
    labels = LabelTrie.from_tokens(TREES[tree])
    rights = torch.arange(9) % len(labels)
    with TunedPLM(plm, NOTHING) as tuned:
        loss = labels.full_vocab_loss(tuned, [], *data.batch(torch.arange(9)), rights)
    terms = []
    for row, right in enumerate(rights.tolist()):
        ids, word = data.batch(torch.tensor([row]))[0], TREES[tree][right]
        for place in range(len(word) + 1):
            logits = library_logits(plm, ids, torch.tensor([word[:place]], dtype=torch.long))[0].log_softmax(0)
            nexts = [other[place] for other in TREES[tree] if other[:place] == word[:place] and len(other) > place]
            if place < len(word):
                terms.append(-logits[word[place]])
            elif nexts:
                terms.append(-torch.log(1 - logits[sorted(set(nexts))].exp().sum()))
    torch.testing.assert_close(loss, torch.stack(terms).mean(), atol=1e-4, rtol=1e-4)


def test_label_word_that_continues_another_is_scored_in_the_tokens_of_a_tokenizer():
    """A prefix in text is a prefix in tokens or not, depending on the tokenizer; both are scored."""
    task = {"task": "toy", "verbalizer": {"a": " card", "b": " card arrival", "c": " no", "d": " not"}}
    one, plm = torch.ones(1, 1, dtype=torch.long), FakeTunedPLM(400)
    for texts in ([" x"], [" card arrival no not"] * 9):
        tokens = label_tokens(task, byte_pairs(texts, 400))
        labels = LabelTrie.from_tokens(tokens)
        assert any(node.has_end for node in labels.nodes)
        chances = labels.scores(plm, [], one, one[0]).softmax(dim=1)[0]
        torch.testing.assert_close(chances, counted_out(tokens, plm.logits), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [260, 300, 320])
def test_train_cell_with_label_words_that_share_tokens_writes_the_same_bytes(size, tmp_path):
    """With few merges the label words share long prefixes."""
    tokenizer = byte_pairs(LABELS * 9, size)
    task = {"task": "toy", "verbalizer": dict(zip("abcdef", LABELS, strict=True))}
    tokens = label_tokens(task, tokenizer)
    assert len({ids[0] for ids in tokens}) < len(tokens)
    labels = LabelTrie.from_tokens(tokens)
    assert all(node.next_index.max() + 1 == len(node.tokens) + node.has_end > 1 for node in labels.nodes)
    plm = replace(tiny_plm("bloom", vocabulary=len(tokenizer)), tokenizer=tokenizer)
    folder, _ = prepared(
        tmp_path / "data", PAIRS, **FIELDS, max_length=200, verbalizer={"a": LABELS[1], "b": LABELS[2]}
    )
    inputs = CellInputs.from_folder(plm, folder, 500)
    assert inputs.data.objective.trie.tokens == (tuple(tokens[1]), tuple(tokens[2]))
    small = cell("lora", "@own", num_plans=1, training=replace(CONFIG, max_steps=4, num_evals=2))
    for name in "ab":
        record = train_cell(small, inputs, tmp_path / name)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    test = record["replicates"][0]["test"]
    assert test["n"] == 29 and test["metrics"]["accuracy"] == test["score"]


@pytest.mark.parametrize("tree", ["two nodes", "one continues the other"])
def test_label_trie_loss_reaches_theta_through_all_nodes(tree):
    """θ changes logits after a prefix, in the PLM and in its word embeddings."""
    plm, data = framed("t5")
    plan, labels = plan_of(plm, "all"), LabelTrie.from_tokens(TREES[tree])
    theta = theta_of(plan, 0.3)
    with TunedPLM(plm, plan) as tuned:
        moved = predict(tuned, [theta.detach()], data, labels).softmax(dim=1)
        labels.loss(tuned, [theta], *data.batch(torch.arange(9)), torch.ones(9, dtype=torch.long)).backward()
    with TunedPLM(plm, NOTHING) as tuned:
        assert not torch.allclose(moved, predict(tuned, [], data, labels).softmax(dim=1), atol=1e-3)
    torch.testing.assert_close(moved.sum(dim=1), torch.ones(9))
    assert (theta.grad != 0).float().mean() > 0.9
