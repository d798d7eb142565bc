"""Scores of classifiers: batching does not matter, labels meet the right outputs, misfits are refused."""

import math
from types import SimpleNamespace

import pytest
import scipy.stats
import sklearn.metrics
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from fas.data.table import Table, tokenise_table
from fas.errors import DataError
from fas.evaluation.classify import classify

WORDS = ["[PAD]", "[UNK]", "bad", "fine", "good", "very", "film"]
TABLE = Table(
    sentences=["good film", "very very bad film", "fine", "bad", "very good", "film"],
    pairs=None,
    labels=[1, 0, 1, 0, 1, 0],
    task="classification",
    label_names=("0", "1"),
)


@pytest.fixture(scope="module")
def tokenizer():
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")


def bert(num_labels=2, **options):
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=8,
        num_labels=num_labels,
        **options,
    )
    model = BertForSequenceClassification(config)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.5)
    return model


def relabelled(labels, names):
    return Table(TABLE.sentences, None, labels, "classification", names)


class Oracle(torch.nn.Module):
    """Answers with the logits of a row's first word, given by token id."""

    def __init__(self, answers, id2label=None):
        super().__init__()
        self.answers = torch.tensor(answers)
        self.config = SimpleNamespace(id2label=id2label or {})

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        return SimpleNamespace(logits=self.answers[input_ids[:, 0]])


def by_word(outputs, **chosen):
    """Logits [words, outputs] that pick ``chosen[word]``, 0 for other words."""
    return [[float(chosen.get(word, 0) == k) for k in range(outputs)] for word in WORDS]


def test_a_known_answer(tokenizer):
    # "very" begins a negative and a positive row, so one row is wrong: 5 of 6, one false positive.
    scores = classify(Oracle(by_word(2, good=1, fine=1, very=1)), TABLE, tokenizer)
    assert scores == {
        "accuracy": pytest.approx(5 / 6),
        "f1": pytest.approx(6 / 7),
        "matthews": pytest.approx(sklearn.metrics.matthews_corrcoef(TABLE.labels, [1, 1, 1, 0, 1, 0])),
    }


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_batching_and_order_do_not_matter(tokenizer, batch_size):
    model = bert().eval()
    rows = tokenise_table(TABLE, tokenizer)
    with torch.no_grad():
        predicted = [model(input_ids=torch.tensor([row["input_ids"]])).logits.argmax(-1).item() for row in rows]
    expected = sklearn.metrics.accuracy_score(TABLE.labels, predicted)
    assert classify(model, rows, tokenizer, batch_size=batch_size)["accuracy"] == pytest.approx(expected)
    assert classify(model, TABLE, tokenizer, batch_size=batch_size)["accuracy"] == pytest.approx(expected)


def test_three_classes_have_a_macro_f1(tokenizer):
    table = relabelled([0, 1, 2, 1, 0, 2], ("a", "b", "c"))
    scores = classify(Oracle(by_word(3, fine=2, bad=1, film=2)), table, tokenizer)
    assert scores["f1_macro"] == pytest.approx(
        sklearn.metrics.f1_score(table.labels, [0, 0, 2, 1, 0, 2], average="macro")
    )
    assert "f1" not in scores


def test_regression(tokenizer):
    table = Table(TABLE.sentences, None, [5.0, 0.5, 3.0, 1.0, 4.5, 2.0], "regression")
    answers = [[float(i)] for i in range(len(WORDS))]
    scores = classify(Oracle(answers), table, tokenizer)
    first_words = [4, 5, 3, 2, 5, 6]
    assert scores == {
        "pearson": pytest.approx(scipy.stats.pearsonr(first_words, table.labels).statistic),
        "spearman": pytest.approx(scipy.stats.spearmanr(first_words, table.labels).statistic),
    }


def test_classes_of_the_same_names_meet_in_any_order(tokenizer):
    table = relabelled([1, 0, 1, 0, 1, 0], ("negative", "positive"))
    answers = by_word(2, bad=1, film=1)
    swapped = Oracle(answers, id2label={0: "POSITIVE", 1: "NEGATIVE"})
    unnamed = Oracle(answers, id2label={0: "LABEL_0", 1: "LABEL_1"})
    assert classify(swapped, table, tokenizer)["accuracy"] == pytest.approx(5 / 6)
    assert classify(unnamed, table, tokenizer)["accuracy"] == pytest.approx(1 / 6)
    # Neither order of names is the alphabet's.
    other = Oracle(answers, id2label={0: "negative", 1: "positive"})
    backwards = relabelled([0, 1, 0, 1, 0, 1], ("positive", "negative"))
    assert classify(other, backwards, tokenizer)["accuracy"] == pytest.approx(1 / 6)


def test_nan_logits_score_nan(tokenizer):
    scores = classify(Oracle([[math.nan, 0.0]] * len(WORDS)), TABLE, tokenizer)
    assert scores.keys() == {"accuracy", "f1", "matthews"}
    assert all(math.isnan(score) for score in scores.values())


def test_mode_is_restored_and_progress_counts_rows(tokenizer):
    model, seen = bert().train(), []
    classify(model, TABLE, tokenizer, batch_size=4, progress=lambda _, done, total: seen.append((done, total)))
    assert model.training
    assert seen == [(4, 6), (6, 6)]


def test_labels_the_head_has_no_output_for(tokenizer):
    with pytest.raises(DataError, match="label 2 is outside the model's 2 classes"):
        classify(bert(2), relabelled([0, 1, 2, 0, 1, 2], ("a", "b", "c")), tokenizer)


def test_scores_need_one_output(tokenizer):
    table = Table(TABLE.sentences, None, [0.5] * 6, "regression")
    with pytest.raises(DataError, match="labels are scores, but the model has 2 outputs"):
        classify(bert(2), table, tokenizer)


def test_classes_need_more_than_one_output(tokenizer):
    with pytest.raises(DataError, match=r"labels are classes 0 to 1.*num_labels=2"):
        classify(bert(1), TABLE, tokenizer)


def test_rows_without_labels(tokenizer):
    with pytest.raises(DataError, match="row 0 has no label"):
        classify(bert(), [{"input_ids": [2], "attention_mask": [1]}], tokenizer)


def test_no_rows(tokenizer):
    with pytest.raises(DataError, match="no rows to classify"):
        classify(bert(), [], tokenizer)


def test_tokenizer_of_another_model(tokenizer):
    rows = [{"input_ids": [2, len(WORDS)], "attention_mask": [1, 1], "labels": 0}]
    with pytest.raises(DataError, match=rf"token id {len(WORDS)} does not fit a model of"):
        classify(bert(), rows, tokenizer)


def test_rows_longer_than_the_context(tokenizer):
    table = Table(["very " * 20], None, [1], "classification", ("0", "1"))
    with pytest.raises(DataError, match="a row of 20 tokens is longer than the model's context of 8"):
        classify(bert(), table, tokenizer)
    assert classify(bert(), table, tokenizer, max_length=8)["accuracy"] in (0.0, 1.0)


def test_batch_size_below_one(tokenizer):
    with pytest.raises(ValueError, match="batch_size is 0"):
        classify(bert(), TABLE, tokenizer, batch_size=0)
