"""Tiny models with tokenizers on disk, and a way to run the program in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)
from typer.testing import CliRunner, Result

from fas.cli.main import app

Run = Callable[..., Result]


@pytest.fixture(scope="session")
def run() -> Run:
    """Run ``fas`` with arguments, and hold it to an exit code."""

    def invoke(*arguments: Any, code: int = 0) -> Result:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        unforeseen = result.exception if not isinstance(result.exception, SystemExit) else None
        assert result.exit_code == code and unforeseen is None, (result.output, result.exception)
        return result

    return invoke


@pytest.fixture(scope="session")
def rows(run: Run) -> Callable[..., list[dict[str, Any]]]:
    """Run ``fas`` with ``--json`` and return the rows: whatever else were on stdout would not parse."""

    def invoke(*arguments: Any) -> list[dict[str, Any]]:
        found = json.loads(run(*arguments, "--json").stdout)
        assert isinstance(found, list) and found
        for row in found:
            assert set(row) == {"quantity", "value", "unit", "origin", "conditions"}
            assert set(row["conditions"]) >= {"model", "network", "command", "versions"}
            assert set(row["conditions"]["versions"]) >= {"fas", "torch", "transformers"}
            assert row["conditions"]["command"].startswith("fas ")
        return found

    return invoke


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of single bytes, built here."""
    vocabulary = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<eos>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of everything that the tests of the command line share."""
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="session")
def dense(folder: Path) -> Path:
    """A random GPT-2 with a byte tokenizer; its context holds 64 tokens."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=256
    )
    place = folder / "gpt2"
    GPT2LMHeadModel(config).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


@pytest.fixture(scope="session")
def text(folder: Path) -> Path:
    """A text of some two thousand bytes."""
    place = folder / "text.txt"
    place.write_text("".join(f"{i} bottles of beer on the wall, take {i % 7} down.\n" for i in range(50)))
    return place


@pytest.fixture(scope="session")
def held_out(folder: Path, text: Path) -> Path:
    """Another text as long."""
    place = folder / "other.txt"
    place.write_text(text.read_text()[::-1])
    return place


@pytest.fixture(scope="session")
def snn(run: Run, dense: Path, text: Path, folder: Path) -> Path:
    """The GPT-2, converted by the program."""
    place = folder / "gpt2-snn"
    run("convert", dense, place, "--data", text, "--tokens", 512, "--timesteps", 4, "--neuron", "signed_if")
    return place


@pytest.fixture(scope="session")
def table(folder: Path) -> Path:
    """Sentences with two labels."""
    place = folder / "dev.tsv"
    lines = [f"{word} film\t{label}" for word, label in (("good", 1), ("bad", 0), ("fine", 1), ("poor", 0))]
    place.write_text("\n".join(["sentence\tlabel", *lines * 4]) + "\n")
    return place


@pytest.fixture(scope="session")
def other_table(folder: Path, table: Path) -> Path:
    """Other sentences with two labels."""
    place = folder / "train.tsv"
    place.write_text(table.read_text().replace("film", "film film"))
    return place


@pytest.fixture(scope="session")
def classifier(folder: Path) -> Path:
    """A random BERT with two classes and a vocabulary of its own."""
    torch.manual_seed(0)
    place = folder / "bert"
    place.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "fine", "poor", "film"]
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        num_labels=2,
    )
    BertForSequenceClassification(config).save_pretrained(place)
    BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}).save_pretrained(place)
    return place
