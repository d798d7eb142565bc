"""Licence and base model: what a dense model states of them is in the card of the converted one, and nothing else."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from made import once
from tiny_models import FAMILIES
from transformers import AutoModelForCausalLM

import fas
from fas.storage import origin
from fas.storage.card import model_card
from fas.storage.origin import BASE, ORIGIN, origin_of

FRONT = "---\nlicense: other\nlicense_name: gemma\nlicense_link: https://g.co/terms\nbase_model: some/gpt2\n---\n# text"


@once
def converted(name: str, text: str):
    """Return a model of a directory with a card."""
    import tempfile

    folder = Path(tempfile.mkdtemp()) / name
    FAMILIES["gpt2"].build().save_pretrained(folder)
    (folder / "README.md").write_text(text)
    model = AutoModelForCausalLM.from_pretrained(folder)
    return fas.convert(model, fas.FAS(timesteps=4, coverage="mlp"), calibration=[FAMILIES["gpt2"].batch()])


def test_a_directory_with_a_card_of_its_own(tmp_path):
    model = converted("mine", FRONT)
    model.save_pretrained(tmp_path / "m")
    card = ModelCard.load(tmp_path / "m" / "README.md")
    assert (card.data.license, card.data.license_name) == ("other", "gemma")
    assert card.data.license_link == "https://g.co/terms" and card.data.base_model == "some/gpt2"
    assert "Converted from mine (base model: [some/gpt2](https://huggingface.co/some/gpt2)) with fas" in card.text
    assert "keep the licence of the dense model: other." in card.text
    # Later saves state it too, whatever lies where the model came from by then.
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    again.save_pretrained(tmp_path / "n")
    assert ModelCard.load(tmp_path / "n" / "README.md").data.base_model == "some/gpt2"
    assert not hasattr(fas.revert(again).config, ORIGIN)


def test_what_is_not_stated_is_not_said(tmp_path):
    for text in (
        "# words alone",
        "---\nlicense: [a\n---\n",
        "---\n- a\n---\n",
        "---\nlicense: 3\nbase_model: [a]\n---\n",
    ):
        (tmp_path / "README.md").write_text(text)
        assert origin_of(str(tmp_path)) == {}
    (tmp_path / "README.md").write_bytes(b"\xff\xfe---\n")
    assert origin_of(str(tmp_path)) == {} == origin_of(str(tmp_path / "nowhere")) == origin_of("some/other")
    card = model_card({**converted("bare", "# text").config.to_dict(), "architectures": ["GPT2LMHeadModel"]})
    assert card.data.license is None and card.data.base_model is None and "of the dense model." in card.text


def test_a_name_on_the_hub_is_the_base_itself(tmp_path, monkeypatch):
    (tmp_path / "README.md").write_text(FRONT)
    asked = []

    def cached(name, file):
        asked.append((name, file))
        return str(tmp_path / "README.md")

    monkeypatch.setattr(origin, "try_to_load_from_cache", cached)
    for name in ("own/er", "own/er/in/it-Q4.gguf"):
        config = type("Config", (), {"_name_or_path": name})()
        origin.remember_origin(config)
        assert getattr(config, BASE) == "own/er" and getattr(config, ORIGIN)["license"] == "other"
    assert asked == [("own/er", "README.md")] * 2
    told = {**converted("bare", "# text").config.to_dict(), BASE: "own/er", ORIGIN: config.base_model_card}
    card = model_card({**told, "architectures": ["GPT2LMHeadModel"]})
    assert card.data.base_model == "own/er" and card.data.license_name == "gemma" and "some/gpt2" not in str(card)


def test_what_a_gguf_file_states(tmp_path):
    gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install 'fas[gguf]'")
    file = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_license("apache-2.0")
    writer.add_base_model_count(1)
    writer.add_base_model_repo_url(0, "https://huggingface.co/some/llama")
    writer.add_repo_url("https://huggingface.co/some/llama-gguf")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert origin_of(str(file)) == {"license": "apache-2.0", "base_model": "some/llama"}
    config = type("Config", (), {"_name_or_path": str(file)})()
    origin.remember_origin(config)
    assert getattr(config, BASE) == "./model.gguf"  # not "…/model.gguf", which the hub could know
    file.write_bytes(b"GGUF and nothing else")
    assert origin_of(str(file)) == {}


def test_nothing_that_a_file_says_becomes_a_link_of_its_own(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\nbase_model: '](https://evil) [x'\n---\n")
    assert origin_of(str(tmp_path)) == {"license": "mit"}
