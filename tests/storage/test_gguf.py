"""Models in GGUF files: what is loaded is what the file describes, and can be converted and saved."""

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import fas
from fas.data.for_model import Sample
from fas.errors import CheckpointError, MissingExtraError
from fas.loading import location

pytest.importorskip("gguf", reason="gguf is not installed: pip install 'fas[gguf]'")

from tiny_gguf import BOS, WORDS, llama, write_gguf

IDS = torch.arange(24).view(2, 12)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(place, llama(tied=False))
    return place


@pytest.mark.parametrize("tied", [False, True])
def test_logits_are_those_of_the_same_weights(tmp_path: Path, tied: bool, capfd: pytest.CaptureFixture[str]) -> None:
    plain = write_gguf(tmp_path / "tiny.gguf", llama(tied=tied))
    loaded = fas.load(str(tmp_path / "tiny.gguf"))
    assert "quantizing" not in capfd.readouterr().err  # no bar of transformers in a log
    with torch.no_grad():
        # The same float32 weights in the same class.
        assert torch.equal(loaded.model(IDS).logits, plain(IDS).logits)
    assert loaded.model.dtype == torch.float32 and type(loaded.model) is type(plain)
    assert (loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight) is tied
    loaded.model.save_pretrained(tmp_path / "saved")
    with torch.no_grad():
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
        assert torch.equal(again(IDS).logits, plain(IDS).logits)
    assert not hasattr(again.config, "quantization_config")
    assert loaded.model.generation_config.eos_token_id == plain.config.eos_token_id


@pytest.mark.parametrize("add_bos", [False, True])
def test_the_tokenizer_is_that_of_the_file(tmp_path: Path, add_bos: bool) -> None:
    write_gguf(tmp_path / "tiny.gguf", llama(tied=True), add_bos=add_bos)
    loaded = fas.load(str(tmp_path / "tiny.gguf"))
    ids = loaded.need_tokenizer()("he he").input_ids
    assert ids == [BOS] * add_bos + [WORDS.index(word) for word in ("he", "Ġ", "he")]
    assert loaded.bos == (BOS if add_bos else None)
    loaded.need_tokenizer().save_pretrained(tmp_path / "saved")
    assert AutoTokenizer.from_pretrained(tmp_path / "saved")("he he").input_ids == ids


def test_a_converted_model_is_an_ordinary_directory(file: Path, tmp_path: Path) -> None:
    loaded = fas.load(str(file))
    # Text by itself: the tokenizer is found in the file that the model came from.
    snn = fas.convert(
        loaded.model, fas.FAS(timesteps=4), calibration=["hello he " * 40], sample=Sample(64, 16)
    )  # fmt: skip
    snn.save_pretrained(tmp_path / "snn")
    with torch.no_grad():
        assert torch.equal(fas.load(str(tmp_path / "snn")).model(IDS).logits, snn(IDS).logits)


def test_every_name_of_the_same_file(file: Path, tmp_path: Path) -> None:
    assert location(str(file)) == location(str(file.parent))
    with torch.no_grad():
        expected = fas.load(str(file)).model(IDS).logits
        assert torch.equal(fas.load(str(file.parent)).model(IDS).logits, expected)
        assert torch.equal(fas.load(str(file.parent), gguf_file=file.name).model(IDS).logits, expected)
    found = location("owner/name/folder/tiny.gguf")
    assert (found.name, found.gguf_file) == ("owner/name", "folder/tiny.gguf")
    with pytest.raises(CheckpointError, match=r"no directory or \.gguf file missing/tiny\.gguf"):
        location("missing/tiny.gguf")


def test_several_files_need_a_choice(file: Path, tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        shutil.copy(file, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"has 2 GGUF files \(a\.gguf, b\.gguf\): choose one with --gguf-file"):
        fas.load(str(tmp_path))
    assert fas.load(str(tmp_path), gguf_file="b.gguf").model.config.hidden_size == 32
    # Beside safetensors it is another copy.
    llama(tied=True).save_pretrained(tmp_path)
    assert location(str(tmp_path)).gguf_file is None


def test_files_that_cannot_be_read(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = file.read_bytes()
    for name, length in (("header.gguf", 20), ("words.gguf", 2000), ("weights.gguf", len(content) - 1000)):
        (tmp_path / name).write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=rf"{name} is truncated or damaged .*: download it again"):
            fas.load(str(tmp_path / name))
    (tmp_path / "other.gguf").write_bytes(b"PK" + content[2:])
    with pytest.raises(CheckpointError, match=r"other\.gguf is not a GGUF file"):
        fas.load(str(tmp_path / "other.gguf"))
    with pytest.raises(CheckpointError, match="one piece of 3: join them first"):
        fas.load("owner/name/model-00001-of-00003.gguf")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fas\[gguf\]'"):
        fas.load(str(file))


def test_kinds_that_transformers_does_not_know(tmp_path: Path) -> None:
    write_gguf(tmp_path / "other.gguf", llama(tied=True), architecture="rwkv6")
    with pytest.raises(CheckpointError, match=r"other\.gguf cannot be read: .*rwkv6 is not supported.*safetensors"):
        fas.load(str(tmp_path / "other.gguf"))
    write_gguf(tmp_path / "less.gguf", llama(tied=True), without=("blk.1.ffn_up.weight",))
    with pytest.raises(CheckpointError, match=r"has no weights for model\.layers\.1\.mlp\.up_proj\.weight"):
        fas.load(str(tmp_path / "less.gguf"))
