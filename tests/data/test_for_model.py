"""Data by name, documents or batches, as the inputs of a model."""

import hashlib
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import fas
from fas.data import stdlib
from fas.data.for_model import (
    Sample,
    calibration_batches,
    check_apart,
    contents,
    default_data,
    held_out_batches,
    name_of_data,
    tokens,
    warn_of_batches,
)
from fas.errors import CheckpointError, DataError
from fas.evaluation.score import measure, scores_on
from fas.loading import Loaded

WORDS = ["[END]", "[UNK]", "[BOS]", *"abcdefgh"]
TEXT = "a b c d e f g h " * 16


def tokenizer(*, bos: bool = False) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="[BOS] $A", special_tokens=[("[BOS]", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", eos_token="[END]", bos_token="[BOS]")


def gpt2() -> GPT2LMHeadModel:
    config = GPT2Config(vocab_size=len(WORDS), n_positions=16, n_embd=16, n_layer=1, n_head=2)
    return GPT2LMHeadModel(config).eval()


@pytest.fixture
def loaded() -> Loaded:
    return Loaded.of(gpt2(), tokenizer())


def rows(batches: list) -> list[list[int]]:
    return [row for batch in batches for row in batch["input_ids"].tolist()]


def test_a_file_and_its_documents_are_the_same_data(loaded: Loaded, tmp_path: Path) -> None:
    file, sample = tmp_path / "text.txt", Sample(64, 8, batch_size=3)
    file.write_text(TEXT)
    found = [rows(calibration_batches(loaded, data, sample)) for data in (str(file), file, [TEXT], (TEXT,))]
    assert found[0] and all(other == found[0] for other in found[1:])
    assert [len(batch["input_ids"]) for batch in calibration_batches(loaded, file, sample)] == [3, 3, 2]


def test_a_sample_says_how_much_and_in_what_pieces(loaded: Loaded) -> None:
    assert (Sample().window_for(loaded), Sample(window=5).window_for(loaded)) == (16, 5)
    first, other = (rows(calibration_batches(loaded, [TEXT * 4], Sample(32, 5, seed=seed))) for seed in (0, 1))
    assert len(first) == len(other) == 6 and first != other
    assert len(rows(calibration_batches(loaded, [TEXT], Sample(None, 8)))) == 16


def test_windows_begin_with_the_token_that_the_tokenizer_adds() -> None:
    loaded = Loaded.of(gpt2(), tokenizer(bos=True))
    assert loaded.bos == 2 and Loaded.of(gpt2()).bos is None
    for batches in (
        calibration_batches(loaded, [TEXT], Sample(64, 8)),
        held_out_batches(loaded, [TEXT], Sample(64, 8)),
    ):
        assert {row[0] for row in rows(batches)} == {2} and sum(2 in row[1:] for row in rows(batches)) == 0
    assert tokens(loaded, [TEXT, "a"], "train")[-2:].tolist() == [2, 3]


def test_batches_are_taken_as_they_are(loaded: Loaded) -> None:
    batches = [{"input_ids": torch.arange(6).view(1, 6)}]
    assert calibration_batches(loaded, batches, Sample(2)) == batches
    assert calibration_batches(loaded, tuple(batches), Sample(2)) == batches


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.zeros(2, 4), r"this is one tensor \[2, 4\]: pass \[\{'input_ids': tensor\}\]"),
        ({"input_ids": torch.zeros(2, 4)}, r"this is one dict: pass \[batch\]"),
        ((x for x in ()), r"read several times; this is a generator: pass list\(\.\.\.\) of it"),
        ([torch.zeros(2, 4)], r"the first element is a Tensor, not a dict of tensors or a string"),
        ([{"text": "a b"}], r"these are rows with strings: pass a column of texts, data\['text'\]"),
        ([{"input_ids": [1, 2]}], r"'input_ids' of the first batch is a list: make tensors \(return_tensors='pt'\)"),
    ],
)
def test_what_is_no_data_is_named_with_what_to_pass(data: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        fas.convert(gpt2(), calibration=data)


def test_text_needs_a_tokenizer() -> None:
    with pytest.raises(CheckpointError, match=r"has no tokenizer that can be read.* or pass tokenizer="):
        calibration_batches(Loaded.of(gpt2()), [TEXT], Sample())


def test_data_have_a_name_where_they_can_be_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    assert name_of_data("text.txt") == name_of_data(Path("text.txt")) == str(tmp_path / "text.txt")
    assert name_of_data("wikitext") == "wikitext"
    assert name_of_data([TEXT]) is None and name_of_data([{}]) is None and name_of_data(None) is None


def test_a_converted_model_knows_its_data(tmp_path: Path) -> None:
    file, place = tmp_path / "text.txt", tmp_path / "snn"
    file.write_text(TEXT)
    model = fas.convert(gpt2(), fas.FAS(timesteps=4), calibration=file, tokenizer=tokenizer(), sample=Sample(64, 8))
    assert default_data(Loaded.of(model), None) == str(file)
    model.save_pretrained(place)
    assert default_data(fas.load(str(place)), None) == str(file)
    assert default_data(fas.load(str(place)), "other") == "other"
    # Batches have no name, and those of the first calibration remain the model's.
    fas.calibrate(model, [{"input_ids": torch.arange(6).view(1, 6)}])
    assert model.fas_config.data == str(file)
    with pytest.raises(DataError, match=r"no data named for GPT2LMHeadModel: pass a text file.*--data wikitext"):
        default_data(Loaded.of(gpt2()), None)


def test_text_by_name_calibrates_as_its_batches_do(tmp_path: Path) -> None:
    file, sample = tmp_path / "text.txt", Sample(64, 8)
    file.write_text(TEXT)
    dense = gpt2()
    state = {name: value.clone() for name, value in dense.state_dict().items()}
    batches = calibration_batches(Loaded.of(dense, tokenizer()), file, sample)
    one = fas.convert(dense, calibration=batches).state_dict()
    again = gpt2()
    again.load_state_dict(state)
    other = fas.convert(again, calibration=str(file), tokenizer=tokenizer(), sample=sample).state_dict()
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("windows, warned", [(31, True), (32, False)])
def test_few_tokens_are_warned_of(loaded: Loaded, caplog: pytest.LogCaptureFixture, windows: int, warned: bool) -> None:
    warn_of_batches(calibration_batches(loaded, [TEXT * 4], Sample(8 * windows, 8)), loaded.model.config)
    assert ("thresholds from so few" in caplog.text) == warned


def test_calibration_on_padding_that_no_mask_marks_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    ids = torch.zeros(8, 64, dtype=torch.long)
    ids[:, :16] = 5
    config = SimpleNamespace(pad_token_id=0)
    warn_of_batches([{"input_ids": ids, "attention_mask": torch.ones_like(ids)}], config)
    for without in (ids[:, :24], torch.arange(512).view(8, 64) % 60):
        warn_of_batches([{"input_ids": without}], SimpleNamespace(pad_token_id=None))
    warn_of_batches([{"input_ids": ids[:, :24]}], config)
    assert "padding" not in caplog.text
    warn_of_batches([{"input_ids": ids}], config)
    assert "75 % of the calibration tokens look like padding (id 0)" in caplog.text
    # GPT-2's configuration names none; many pad with the token that ends a text.
    warn_of_batches([{"input_ids": torch.where(ids == 0, 9, ids)}, {"input_ids": ids[:0]}], None)
    assert "75 % of the calibration tokens look like padding (id 9)" in caplog.text
    fas.convert(gpt2(), fas.FAS(timesteps=2), calibration=[{"input_ids": torch.ones(1, 1, dtype=torch.long)}])
    assert "sees 1 tokens" in caplog.text


def test_the_file_of_the_calibration_is_no_default_for_a_measurement(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text(TEXT * 4)
    model = gpt2()
    fas.convert(model, fas.FAS(timesteps=2), calibration=file, tokenizer=tokenizer(), sample=Sample(256, 8))
    loaded = Loaded.of(model, tokenizer())
    assert default_data(loaded, None) == str(file) == default_data(loaded, str(file), held_out=True)
    with pytest.raises(DataError, match=r"calibrated on .* name other data"):
        default_data(loaded, None, held_out=True)


def test_calibration_reads_the_train_part_and_measurements_the_test_part(loaded: Loaded, tmp_path: Path) -> None:
    for name, word in (("train", "a"), ("test", "b")):
        (tmp_path / f"{name}.txt").write_text(f"{word} " * 64)
    a, b = (WORDS.index(word) for word in "ab")
    source, sample = str(tmp_path), Sample(32, 8)
    calibrating, counted = calibration_batches(loaded, source, sample), held_out_batches(loaded, source, sample)
    assert {token for row in rows(calibrating) for token in row} == {a}
    assert {token for row in rows(counted) for token in row} == {b}
    whole, train, test = (
        measure(loaded, scores_on(loaded, str(place)))[0].value
        for place in (tmp_path, tmp_path / "train.txt", tmp_path / "test.txt")
    )
    assert whole == test != train == fas.evaluate(loaded, tmp_path / "train.txt")[0].value
    # And in the library, unless another is named.
    assert [fas.evaluate(loaded, tmp_path, **part)[0].value for part in ({}, {"split": "train"})] == [test, train]
    apart(loaded, source, source)


def apart(loaded: Loaded, source: object, test: object) -> None:
    parts = contents(loaded, str(source), "train"), contents(loaded, str(test), "test")
    check_apart(*parts, str(source), str(test))


def test_text_that_calibrates_does_not_measure_whatever_it_is_called(loaded: Loaded, tmp_path: Path) -> None:
    # A directory without names of splits gives all of its files to both.
    for name in ("one", "other"):
        (tmp_path / f"{name}.txt").write_text(f"{name} " * 64)
    copy = tmp_path / "copy" / "again.txt"
    copy.parent.mkdir()
    copy.write_text("one " * 64)
    for test in (tmp_path, tmp_path / "one.txt", copy):
        with pytest.raises(ValueError, match=r"the same data of .* would calibrate and measure: name other data"):
            apart(loaded, tmp_path, test)
    # A part of what is measured may not calibrate either.
    with pytest.raises(ValueError, match="would calibrate and measure"):
        apart(loaded, tmp_path / "one.txt", tmp_path)
    apart(loaded, tmp_path / "one.txt", tmp_path / "other.txt")


def test_rows_of_a_table_that_calibrate_do_not_measure_in_another_file_or_order(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9
    )
    classifier = Loaded.of(transformers.BertForSequenceClassification(config))
    rows = [f"{word} fine\t{word} indeed\t{i % 2}\n" for i, word in enumerate("abcdefgh")]
    places = {}
    for name, chosen in {"train": rows[:4], "test": rows[4:], "copy": rows[3::-1], "half": rows[2:6]}.items():
        places[name] = tmp_path / f"{name}.tsv"
        places[name].write_text("sentence1\tsentence2\tlabel\n" + "".join(chosen))
    apart(classifier, places["train"], places["test"])
    for name in ("copy", "half"):
        with pytest.raises(ValueError, match=rf"the same data of .*train.tsv and .*{name}.tsv would calibrate"):
            apart(classifier, places["train"], places[name])


def test_what_is_held_out_of_the_standard_library_is_a_twentieth_by_the_hash_of_its_path() -> None:
    root = Path(sysconfig.get_paths()["stdlib"])
    names = ["abc.py", "ast.py", "json/decoder.py", *(path.name for path in sorted(root.glob("*.py")))]
    apart = {n for n in names if int(hashlib.sha256(n.encode()).hexdigest(), 16) % 20 == 0}
    assert apart == {n for n in names if stdlib._is_heldout(n)} and 0 < len(apart) < len(names) / 10


def test_a_window_is_no_longer_than_all_tokens(loaded: Loaded) -> None:
    length = Sample(None).window_for(loaded)
    assert Sample(4096).window_for(loaded) == length and Sample(length - 1).window_for(loaded) == length - 1
    assert Sample(3, 3).window_for(loaded) == 3 == Sample(None, 3).window_for(loaded)
    with pytest.raises(ValueError, match=r"--test-tokens 3 holds no window of 4 tokens \(--window\): pass more"):
        Sample(3, 4, option="--test-tokens").window_for(loaded)
