"""GLUE's files and files like them: rows, labels, tasks, and what is refused."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

from fas.data.table import Table, load_table, tokenise_table
from fas.errors import DataError

ENTAILMENT = ("entailment", "not_entailment")
# Rows as published; PROVENANCE.md of the data folder lists them.
GLUE = {
    "SST-2/train": (67_349, False, ("0", "1")),
    "SST-2/dev": (872, False, ("0", "1")),
    "RTE/train": (2_490, True, ENTAILMENT),
    "RTE/dev": (277, True, ENTAILMENT),
    "MRPC/train": (3_668, True, ("0", "1")),
    "MRPC/dev": (408, True, ("0", "1")),
    "CoLA/train": (8_551, False, ("0", "1")),
    "CoLA/dev": (1_043, False, ("0", "1")),
    "STS-B/train": (5_749, True, ()),
    "STS-B/dev": (1_500, True, ()),
    "WNLI/train": (635, True, ("0", "1")),
    "WNLI/dev": (71, True, ("0", "1")),
    "QNLI/dev": (5_463, True, ENTAILMENT),
}


def written(tmp_path, text, name="x.tsv"):
    path = tmp_path / name
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize("name", GLUE)
def test_glue(shared_data, name):
    rows, paired, names = GLUE[name]
    table = load_table(shared_data / "glue" / f"{name}.tsv")
    assert len(table) == len(table.labels) == rows
    assert (table.pairs is not None) == paired
    assert all(table.sentences)
    assert table.label_names == names
    if name.startswith("STS-B"):
        assert table.task == "regression"
        assert min(table.labels) >= 0.0 and max(table.labels) == 5.0
    else:
        assert table.task == "classification"
        assert set(table.labels) == {0, 1}
    if paired:
        assert len(table.pairs) == rows and all(table.pairs)


def test_mrpc_labels_and_literal_quotes(shared_data):
    table = load_table(shared_data / "glue" / "MRPC" / "train.tsv")
    assert table.labels.count(1) == 2_474
    assert table.sentences[0].startswith('Amrozi accused his brother , whom he called " the witness "')


def test_mrpc_test_labels_are_in_the_original_distribution(shared_data):
    assert len(load_table(shared_data / "glue" / "MRPC" / "msr_paraphrase_test.txt")) == 1_725


@pytest.mark.parametrize("name", ["SST-2", "RTE", "MRPC", "CoLA", "STS-B", "WNLI"])
def test_glue_test_files_have_no_labels(shared_data, name):
    with pytest.raises(DataError, match=r"test\.tsv has no labels .* use the dev file"):
        load_table(shared_data / "glue" / name / "test.tsv")


def test_cola_without_a_header(tmp_path):
    table = load_table(written(tmp_path, 'gj04\t1\t\tA "b c.\ngj04\t0\t*\tD e.\n'))
    assert table == Table(['A "b c.', "D e."], None, [1, 0], "classification", ("0", "1"))
    assert len(table.label_names) == 2


def test_scores_are_regression(tmp_path):
    table = load_table(written(tmp_path, "sentence1\tsentence2\tscore\na\tb\t5\nc\td\t0\n"))
    assert table == Table(["a", "c"], ["b", "d"], [5.0, 0.0], "regression")
    assert not table.label_names


def test_fractional_labels_are_regression(tmp_path):
    table = load_table(written(tmp_path, "text\tlabel\na\t0.5\nb\t1\n"))
    assert (table.task, table.labels) == ("regression", [0.5, 1.0])


def test_task_can_be_said(tmp_path):
    path = written(tmp_path, "text\tlabel\na\t2\nb\t1\n")
    assert load_table(path).task == "classification"
    assert load_table(path).label_names == ("0", "1", "2")
    assert load_table(path, task="regression").labels == [2.0, 1.0]


def test_mnli_has_the_order_of_glue(tmp_path):
    path = written(tmp_path, "sentence1\tsentence2\tgold_label\na\tb\tcontradiction\nc\td\tentailment\n")
    table = load_table(path)
    assert table.labels == [2, 0]
    assert table.label_names == ("entailment", "neutral", "contradiction")


def test_other_names_are_alphabetical_unless_said(tmp_path):
    path = written(tmp_path, "text\tlabel\na\tpos\nb\tneg\n")
    assert (load_table(path).labels, load_table(path).label_names) == ([1, 0], ("neg", "pos"))
    said = load_table(path, label_names=["pos", "mixed", "neg"])
    assert (said.labels, said.label_names) == ([0, 2], ("pos", "mixed", "neg"))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("sentence1", "sentence2"),
        ("question", "sentence"),
        ("question1", "question2"),
        ("premise", "hypothesis"),
    ],
)
def test_pairs_by_column_name(tmp_path, first, second):
    table = load_table(written(tmp_path, f"{second}\tlabel\t{first}\nb\t0\ta\n"))
    assert (table.sentences, table.pairs) == (["a"], ["b"])


def test_csv_quotes_are_quotes(tmp_path):
    table = load_table(written(tmp_path, 'text,label\n"a, ""b""\nc",1\r\nd,0\n', "x.csv"))
    assert table.sentences == ['a, "b"\nc', "d"]


@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
def test_json(tmp_path, name):
    rows = [{"text": "a\u2028b", "label": 1}, {"text": "c", "label": 0}]
    text = json.dumps(rows) if name == "x.json" else "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    table = load_table(written(tmp_path, text, name))
    assert (table.sentences, table.labels) == (["a\u2028b", "c"], [1, 0])


def test_windows_line_ends_and_a_byte_order_mark(tmp_path):
    table = load_table(written(tmp_path, "\ufeffsentence\tlabel\r\na \t1\r\n"))
    assert table == Table(["a "], None, [1], "classification", ("0", "1"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.tsv", "", r"x\.tsv has no rows"),
        ("x.tsv", "sentence\tlabel\n", r"x\.tsv has no rows"),
        ("x.tsv", "sentence\tlabel\na\t1\nb\n", r"line 3 has 1 fields, expected 2 \['sentence', 'label'\]"),
        ("x.tsv", "body\tlabel\na\t1\n", r"columns \['body', 'label'\], none known to hold sentences"),
        ("x.tsv", "sentence\tlabel\na\t\n", "row 1 has no value in column 'label'"),
        ("x.tsv", "sentence\tlabel\na\t-1\n", "label -1, which marks rows without labels"),
        ("x.tsv", "sentence\tscore\na\thigh\n", "row 1 has label 'high': expected a number"),
        ("x.csv", 'sentence,label\n"a,1\n', "is not valid CSV"),
        ("x.json", "{", r"x\.json is not valid JSON"),
        ("x.json", "[3]", "row 1 is a int: expected an object"),
        ("x.jsonl", '{"text": 3, "label": 1}', "row 1 column 'text' holds 3: expected a string"),
    ],
)
def test_malformed_files(tmp_path, name, text, message):
    with pytest.raises(DataError, match=message):
        load_table(written(tmp_path, text, name))


def test_file_that_is_not_text(tmp_path):
    (tmp_path / "x.tsv").write_bytes(b"sentence\tlabel\n\xff\t1\n")
    with pytest.raises(DataError, match=r"not UTF-8 text \(byte 15\)"):
        load_table(tmp_path / "x.tsv")


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"nosuch\.tsv is not a file"):
        load_table(tmp_path / "nosuch.tsv")


def test_fewer_names_than_labels(tmp_path):
    path = written(tmp_path, "text\tlabel\na\t1\n")
    with pytest.raises(DataError, match="label 1, but label_names has only 1 names"):
        load_table(path, label_names=["only"])


def test_label_names_that_lack_a_label(tmp_path):
    path = written(tmp_path, "text\tlabel\na\tpos\nb\tneg\n")
    with pytest.raises(DataError, match=r"labels \['neg'\], which label_names \['pos'\] lacks"):
        load_table(path, label_names=["pos"])


@pytest.fixture(scope="module")
def tokenizer():
    words = ["[PAD]", "[UNK]", "a", "b", "c"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")


def test_tokenised_rows(tokenizer):
    rows = tokenise_table(Table(["a b", "c"], ["c", "a b b"], [1, 0], "classification"), tokenizer, 3)
    assert [row["input_ids"] for row in rows] == [[2, 3, 4], [4, 2, 3]]
    assert [row["labels"] for row in rows] == [1, 0]


def test_empty_table(tokenizer):
    with pytest.raises(DataError, match="the table has no rows"):
        tokenise_table(Table([], None, [], "classification"), tokenizer)


@pytest.mark.parametrize(
    ("labels", "task", "dtype"),
    [([1, 0], "classification", torch.int64), ([0.5, 2.0], "regression", torch.float32)],
)
def test_rows_collate_to_tensors(tokenizer, labels, task, dtype):
    rows = tokenise_table(Table(["a b", "c"], None, labels, task), tokenizer)
    batch = DataCollatorWithPadding(tokenizer)(rows)
    assert batch["input_ids"].tolist() == [[2, 3], [4, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch["labels"].dtype == dtype


def test_rows_train_with_the_trainer(tokenizer, tmp_path):
    config = BertConfig(vocab_size=5, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    rows = tokenise_table(Table(["a b", "c", "b"], None, [1, 0, 1], "classification"), tokenizer)
    trainer = Trainer(
        model=BertForSequenceClassification(config),
        args=TrainingArguments(
            output_dir=str(tmp_path), max_steps=2, use_cpu=True, report_to=[], dataloader_pin_memory=False
        ),
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    assert trainer.train().global_step == 2
    assert "eval_loss" in trainer.evaluate()
