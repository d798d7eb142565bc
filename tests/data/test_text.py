"""Where documents come from, how they become one stream, how the stream is cut."""

import json
import logging
import sys
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from fas.data import text as text_module
from fas.data.text import batches, leading_token, load_documents, token_stream, windows
from fas.errors import DataError, MissingExtraError

WORDS = ["[END]", "[UNK]", "a", "b", "c", "|"]


def word_tokenizer(**special):
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", **special)


def leading_tokenizer():
    """A tokenizer that puts a token in front of every text, as Gemma's does."""
    found = word_tokenizer(eos_token="[END]", bos_token="|")
    front = processors.TemplateProcessing(single="| $A", special_tokens=[("|", WORDS.index("|"))])
    found.backend_tokenizer.post_processor = front
    return found


@pytest.fixture
def tokenizer():
    return word_tokenizer(eos_token="[END]", model_max_length=4)


@pytest.fixture
def hub(monkeypatch):
    """A datasets library that records its calls and answers with ``rows``."""

    class DatasetsError(Exception):
        pass

    def load_dataset(name, config, split):
        fake.calls.append((name, config, split))
        if isinstance(fake.rows, Exception):
            raise fake.rows
        return fake.rows

    fake = SimpleNamespace(
        load_dataset=load_dataset,
        exceptions=SimpleNamespace(DatasetsError=DatasetsError),
        calls=[],
        rows=[{"text": "a"}, {"text": "b"}],
    )
    monkeypatch.setitem(sys.modules, "datasets", fake)
    return fake


@pytest.mark.parametrize("name", ["x.txt", "x.raw", "x.md", "x"])
def test_a_text_file_is_one_document_as_it_stands(tmp_path, name):
    (tmp_path / name).write_bytes("ein Ä\r\n\n  b\u2028c \n".encode())
    assert load_documents(tmp_path / name) == ["ein Ä\r\n\n  b\u2028c \n"]


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbfa")
    assert load_documents(str(tmp_path / "x.txt")) == ["a"]


def test_json_lines(tmp_path):
    path = tmp_path / "x.jsonl"
    # U+2028 is legal inside a JSON string and must not end the line.
    path.write_text('{"text": "a\u2028b", "other": "c"}\n\n{"text": "d", "other": "e"}\n', encoding="utf-8")
    assert load_documents(path) == ["a\u2028b", "d"]


def test_json_list(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{"id": 1, "story": "a"}, {"id": 2, "story": "b"}], indent=1))
    assert load_documents(path) == ["a", "b"]


@pytest.mark.parametrize(("suffix", "mark"), [("tsv", "\t"), ("csv", ",")])
def test_the_only_column_of_strings(tmp_path, suffix, mark):
    path = tmp_path / f"x.{suffix}"
    path.write_text("\n".join(mark.join(row) for row in [("n", "story"), ("1", "a 'b"), ("-2.5", "c")]))
    assert load_documents(path) == ["a 'b", "c"]


def test_two_columns_of_strings_need_a_choice(tmp_path):
    (tmp_path / "x.tsv").write_text("q\ta\nb\tc\n")
    with pytest.raises(DataError, match=r"x\.tsv has columns \['q', 'a'\], 2 of them text: call the one"):
        load_documents(tmp_path / "x.tsv")


def test_a_row_without_text(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n{"text": 3}\n')
    with pytest.raises(DataError, match="row 2 column 'text' holds 3: expected a string"):
        load_documents(tmp_path / "x.jsonl")


@pytest.mark.parametrize("content", ["", " \n\n"])
def test_empty_file(tmp_path, content):
    (tmp_path / "x.txt").write_text(content)
    with pytest.raises(DataError, match=r"x\.txt' holds no text"):
        load_documents(tmp_path / "x.txt")


def test_binary_file(tmp_path):
    (tmp_path / "x.bin").write_bytes(b"ab\xff\xfe")
    with pytest.raises(DataError, match=r"x\.bin is not UTF-8 text \(byte 2\)"):
        load_documents(tmp_path / "x.bin")


@pytest.mark.parametrize("pattern", ["{}.txt", "wiki.{}.raw", "wiki.{}.txt"])
def test_directory_with_splits(tmp_path, pattern):
    for name in ("train", "valid", "test"):
        (tmp_path / pattern.format(name)).write_text(name)
    (tmp_path / "vocab.txt").write_text("vocabulary")
    assert load_documents(tmp_path) == ["train"]
    assert load_documents(tmp_path, split="test") == ["test"]
    for split in ("valid", "validation", "dev", "val"):
        assert load_documents(tmp_path, split=split) == ["valid"]


def test_directory_lacks_the_split(tmp_path):
    (tmp_path / "wiki.test.raw").write_text("a")
    with pytest.raises(DataError, match=r"no file for split 'train': it has \['wiki\.test\.raw'\]"):
        load_documents(tmp_path)


def test_directory_without_splits_gives_its_visible_files_by_name(tmp_path):
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "a.jsonl").write_text('{"text": "a1"}\n{"text": "a2"}\n')
    (tmp_path / ".hidden").write_text("hidden")
    (tmp_path / "folder").mkdir()
    assert load_documents(tmp_path, split="test") == ["a1", "a2", "b"]


def test_empty_directory(tmp_path):
    with pytest.raises(DataError, match="holds no files"):
        load_documents(tmp_path)


def test_stdlib_needs_no_download(monkeypatch):
    asked = []
    stdlib = SimpleNamespace(stdlib_text=lambda split: asked.append(split) or ["text"])
    monkeypatch.setitem(sys.modules, "fas.data.stdlib", stdlib)
    for split in ("train", "validation", "test", "heldout"):
        assert load_documents("stdlib", split=split) == ["text"]
    assert asked == ["train", "heldout", "heldout", "heldout"]


def test_hub_data_set(hub):
    assert load_documents("owner/name:config", split="valid") == ["a", "b"]
    assert load_documents("name") == ["a", "b"]
    assert hub.calls == [("owner/name", "config", "validation"), ("name", None, "train")]


def test_wikitext_is_an_alias_and_its_lines_are_one_document(hub):
    assert load_documents("wikitext", split="test") == ["a\n\nb"]
    assert hub.calls == [("Salesforce/wikitext", "wikitext-2-raw-v1", "test")]


@pytest.mark.parametrize("make", [lambda hub: OSError("offline"), lambda hub: hub.exceptions.DatasetsError("offline")])
def test_unreachable_hub_says_what_was_tried(hub, make):
    hub.rows = make(hub)
    with pytest.raises(DataError, match=r"no such file.*hub data set 'nosuch' \(config 'c', split 'train'\).*offline"):
        load_documents("nosuch:c")


def test_real_datasets_library_offline():
    # conftest sets HF_HUB_OFFLINE, so nothing is asked of a network.
    pytest.importorskip("datasets")
    with pytest.raises(DataError, match="hub data set 'fas/no-such-data-set'"):
        load_documents("fas/no-such-data-set")


def test_empty_hub_split(hub):
    hub.rows = []
    with pytest.raises(DataError, match="hub data set 'name' has no rows in split 'train'"):
        load_documents("name")


def test_hub_without_the_datasets_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fas\[data\]'"):
        load_documents("wikitext")


@pytest.mark.parametrize("source", ["nosuch.txt", "nosuch.JSONL", "/no/such/folder", "./nosuch", "no such"])
def test_a_missing_path_is_not_asked_of_the_hub(hub, source):
    with pytest.raises(DataError, match=r"no file or directory .* expected a path, 'stdlib', 'wikitext'"):
        load_documents(source)
    assert hub.calls == []


def test_a_missing_path_object_is_not_asked_of_the_hub(hub, tmp_path):
    with pytest.raises(DataError, match="no file or directory"):
        load_documents(tmp_path / "stdlib")
    assert hub.calls == []


def test_stream_has_the_end_token_between_documents(tokenizer):
    tokens = token_stream(["a b", "c"], tokenizer, vocab_size=len(WORDS))
    assert tokens.dtype == torch.int64
    assert tokens.tolist() == [2, 3, 0, 4]


def test_stream_without_an_end_token():
    assert token_stream(["a b", "c"], word_tokenizer()).tolist() == [2, 3, 4]


def test_long_documents_are_neither_cut_nor_warned_about(tokenizer, caplog):
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        tokens = token_stream(["a " * 50], tokenizer)
    finally:
        logger.removeHandler(caplog.handler)
    assert len(tokens) == 50
    assert caplog.text == ""


def test_no_special_tokens_are_added(shared_data):
    bert = AutoTokenizer.from_pretrained(shared_data / "tokenizers" / "bert-uncased")
    assert token_stream(["hello world", "hello"], bert).tolist() == [7592, 2088, 7592]


def test_tokenizer_of_another_model(tokenizer):
    with pytest.raises(DataError, match=r"token id 4 does not fit a model of 4 .*another model; load the tokenizer"):
        token_stream(["a c b"], tokenizer, vocab_size=4)


@pytest.mark.parametrize("documents", [[], [""], ["", " "]])
def test_no_tokens(tokenizer, documents):
    with pytest.raises(DataError, match=f"{len(documents)} documents hold no tokens"):
        token_stream(documents, tokenizer)


def test_wikitext_2_has_the_published_number_of_tokens(shared_data):
    gpt2 = AutoTokenizer.from_pretrained(shared_data / "tokenizers" / "gpt2")
    (text,) = load_documents(shared_data / "wikitext-2-raw", split="test")
    # The rows as the hub has them: each line with its end, blank ones empty.
    rows = [f"{line}\n" if line.strip() else "" for line in text.split("\n")[:-1]]
    assert len(rows) == 4358
    assert len(token_stream(["\n\n".join(rows)], gpt2, vocab_size=50257)) == 287_644


def test_the_leading_token_is_what_the_tokenizer_adds(tokenizer, shared_data):
    assert leading_token(tokenizer) is None
    assert leading_token(leading_tokenizer()) == WORDS.index("|")
    bert = AutoTokenizer.from_pretrained(shared_data / "tokenizers" / "bert-uncased")
    assert leading_token(bert) == bert.cls_token_id
    gpt2 = AutoTokenizer.from_pretrained(shared_data / "tokenizers" / "gpt2")
    assert gpt2.bos_token_id is not None and leading_token(gpt2) is None


def test_every_document_begins_with_the_leading_token():
    tokenizer = leading_tokenizer()
    assert token_stream(["a b", "c"], tokenizer, bos=5).tolist() == [5, 2, 3, 0, 5, 4]
    with pytest.raises(DataError, match="2 documents hold no tokens"):
        token_stream(["", ""], tokenizer, bos=5)


def test_a_limit_ends_the_reading(tokenizer):
    class Counts:
        eos_token_id, seen = None, 0

        def __call__(self, texts, **options):
            self.seen += sum(map(len, texts))
            return tokenizer(texts, **options)

        def __len__(self):
            return len(tokenizer)

    counts, documents = Counts(), ["a b c " * 10_000] * 20
    tokens = token_stream(documents, counts, limit=7)
    assert tokens.tolist() == token_stream(documents[:1], tokenizer)[:7].tolist()
    # What is tokenised together, and nothing of the rest.
    assert counts.seen <= text_module.PIECE


def test_a_long_document_is_tokenised_in_pieces_with_the_tokens_of_the_whole(shared_data, monkeypatch):
    gpt2 = AutoTokenizer.from_pretrained(shared_data / "tokenizers" / "gpt2")
    (text,) = load_documents(shared_data / "wikitext-2-raw", split="test")
    # One line without line breaks.
    line = text[:300_000].replace("\n", " ")
    whole = gpt2(line, verbose=False)["input_ids"]
    monkeypatch.setattr(text_module, "PIECE", 4096)
    lengths = []

    def watched(texts, **options):
        lengths.extend(map(len, texts))
        return gpt2(texts, **options)

    watched.eos_token_id = gpt2.eos_token_id
    assert token_stream([line], watched).tolist() == whole
    assert max(lengths) <= 4096


def test_a_text_without_gaps_is_cut_anyway(tokenizer, monkeypatch):
    monkeypatch.setattr(text_module, "PIECE", 100)
    # Unknown words of 100 letters each: [UNK].
    assert token_stream(["x" * 250], tokenizer).tolist() == [1, 1, 1]


def test_windows_begin_with_the_leading_token():
    stream = torch.tensor([5, 1, 2, 3, 4, 5, 1, 2, 3, 4])
    assert windows(stream, 3, bos=5).tolist() == [[5, 1, 2], [5, 3, 4], [5, 1, 2], [5, 3, 4]]
    assert windows(stream, 3, bos=5, limit_tokens=7).tolist() == [[5, 1, 2], [5, 3, 4]]
    with pytest.raises(ValueError, match="length is 1: expected at least 2 tokens per window"):
        windows(stream, 1, bos=5)
    with pytest.raises(DataError, match="one window needs 20"):
        windows(stream, 20, bos=5)


def test_windows_do_not_overlap_and_drop_the_rest():
    assert windows(torch.arange(11), 3).tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert windows(torch.arange(3), 3).tolist() == [[0, 1, 2]]


def test_limited_windows_are_the_first_ones_without_a_seed():
    assert windows(torch.arange(100), 3, limit_tokens=8).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert windows(torch.arange(7), 3, limit_tokens=1000).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_seed_chooses_which_windows_are_taken():
    tokens = torch.arange(300)
    chosen = windows(tokens, 3, limit_tokens=30, seed=1)
    assert chosen.shape == (10, 3)
    starts = chosen[:, 0].tolist()
    assert starts == sorted(set(starts))
    assert all(start % 3 == 0 for start in starts)
    assert torch.equal(chosen, tokens[chosen[:, :1] + torch.arange(3)])
    assert torch.equal(chosen, windows(tokens, 3, limit_tokens=30, seed=1))
    assert not torch.equal(chosen, windows(tokens, 3, limit_tokens=30, seed=2))
    assert torch.equal(windows(tokens, 3, seed=1), windows(tokens, 3))


def test_a_seed_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    windows(torch.arange(300), 3, limit_tokens=30, seed=1)
    assert torch.equal(before, torch.get_rng_state())


def test_text_shorter_than_a_window():
    with pytest.raises(DataError, match="the text has 4 tokens, one window needs 5"):
        windows(torch.arange(4), 5)


@pytest.mark.parametrize(
    ("tokens", "length", "limit", "message"),
    [
        (torch.zeros(2, 2), 1, None, r"shape \[2, 2\]: expected one stream"),
        (torch.arange(4), 0, None, "length is 0"),
        (torch.arange(4), 3, 2, "limit_tokens is 2: expected at least one window of 3"),
    ],
)
def test_window_arguments(tokens, length, limit, message):
    with pytest.raises(ValueError, match=message):
        windows(tokens, length, limit_tokens=limit)


def test_batches():
    rows = torch.arange(10).view(5, 2)
    parts = batches(rows, 2)
    assert [part["input_ids"].shape for part in parts] == [(2, 2), (2, 2), (1, 2)]
    assert torch.equal(torch.cat([part["input_ids"] for part in parts]), rows)
    for part in parts:
        assert part["attention_mask"].dtype == torch.int64
        assert torch.equal(part["attention_mask"], torch.ones_like(part["input_ids"]))
    assert batches(rows[:0], 2) == []


def test_batch_arguments():
    with pytest.raises(ValueError, match="batch_size is 0"):
        batches(torch.zeros(2, 2), 0)
    with pytest.raises(ValueError, match=r"shape \[4\]: expected windows \[n, L\]"):
        batches(torch.arange(4), 2)


def test_a_slow_tokenizer_reads_in_pieces_too(monkeypatch):
    slow = ByT5Tokenizer()
    assert not slow.is_fast
    line = "Wörter und spaces, digits 123 … " * 200
    whole = slow(line, add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(text_module, "PIECE", 256)
    assert token_stream([line], slow).tolist() == whole
    assert token_stream([line], slow, limit=300).tolist() == whole[:300]
