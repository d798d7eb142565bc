"""Model cards: what they say, that they follow the model, and that nobody's own text is lost."""

import json
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, ModelCard
from made import once
from tiny_models import FAMILIES
from transformers import AutoModelForCausalLM

import fas
from fas.errors import CheckpointError
from fas.runtime import transformers_
from fas.storage.card import BASE, model_card, write_card
from fas.storage.directory import MARK
from fas.types import Measurement

CONDITIONS = {"timesteps": 4, "levels": 9, "data": "some text", "network": "snn", "model": "/home/me/m", "command": "x"}


@once
def converted(name="gpt2", base="", **options):
    model = FAMILIES[name].build()
    model.config._name_or_path = base
    return fas.convert(model, fas.FAS(timesteps=4, **options), calibration=[FAMILIES[name].batch()])


def rows():
    energy = {**CONDITIONS, "prices": "45nm", "phase": "prefill", "reuse": "time", "precision": "fp32", "tokens": 64}
    return [
        Measurement("perplexity", 37.5, "1", conditions=CONDITIONS),
        Measurement("spikes_per_neuron", 1.25, "spikes/neuron", conditions=CONDITIONS),
        Measurement("spikes_per_neuron", 0.5, "spikes/neuron", conditions={**CONDITIONS, "site": "lm_head"}),
        Measurement("additions", 3.0, "additions/token", conditions=CONDITIONS),
        *(
            Measurement("energy", value, "pJ/token", "estimated", {**energy, "accounting": how, "energy_of": network})
            for how, network, value in (("paper", "snn", 2e6), ("paper", "ann", 5e6), ("compute", "twin", 7e6))
        ),
        Measurement("energy_ratio", 0.4, "1", "estimated", energy),
    ]


def test_what_a_card_says(tmp_path):
    model = converted(base="some-one/gpt2", coverage="mlp", neuron="signed_if")
    model.schedule = "online"
    model.save_pretrained(tmp_path / "m")
    text = (tmp_path / "m" / "README.md").read_text()
    data = ModelCard.load(tmp_path / "m" / "README.md").data
    assert data.library_name == "fas" and data.base_model == "some-one/gpt2" and data.pipeline_tag == "text-generation"
    assert {"spiking-neural-network", "fas", "transformers"} == set(data.tags)
    for line in (
        "| class | `GPT2LMHeadModel` |",
        "| method | fas |",
        "| coverage | mlp: 2 sites; attention and normalisation stay float |",
        "| neuron | signed_if; 2 of 2 sites with both signs |",
        "| time steps T | 4 |",
        "| levels | up to 9 (zero and both signs included) |",
        "| schedule, operators, execution | online, difference, collapsed |",
        'pipeline("text-generation", model=directory)',
        f"| spikes per neuron, calibration data | {model.records[-1].results['spikes_per_neuron']:.4g} |",
        "Quality has not been measured",
    ):
        assert line in text
    assert "last calibrated on 27 tokens" in text and "Not calibrated" not in text and "## Measured" not in text
    assert str(tmp_path) not in text


def test_figures_are_kept_until_the_model_changes(tmp_path):
    converted().save_pretrained(tmp_path / "m")
    write_card(tmp_path / "m", rows())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    model.save_pretrained(tmp_path / "n")
    for name in ("m", "n"):
        text = (tmp_path / name / "README.md").read_text()
        assert "| perplexity | 37.5 | 1 | measured | network snn, T 4, levels 9, data some text |" in text
        assert "| spikes_per_neuron | 1.25 | spikes/neuron | measured |" in text
        assert "| prices | phase | accounting | SNN | dense | integer twin |" in text
        assert "| 45nm | prefill | paper | 2 | 5 |  |" in text and "| 45nm | prefill | compute |  |  | 7 |" in text
        assert "0.5 |" not in text and "additions" not in text.split("## Energy")[0] and "energy_ratio" not in text
    assert "/home/me" not in (tmp_path / "m" / "config.json").read_text()
    # Again without figures: they stay. With others: they are replaced.
    write_card(tmp_path / "m")
    assert "37.5" in (tmp_path / "m" / "README.md").read_text()
    write_card(tmp_path / "m", [])
    assert "## Measured" not in (tmp_path / "m" / "README.md").read_text()
    fas.calibrate(model, [FAMILIES["gpt2"].batch(seed=5)])
    model.save_pretrained(tmp_path / "n")
    assert "37.5" not in (tmp_path / "n" / "README.md").read_text()


def test_folders_of_the_one_who_converted_are_nobodys_business(tmp_path):
    model = converted()
    model.fas_config.data = "/home/me/secret/corpus.txt"
    model.save_pretrained(tmp_path / "m")
    write_card(tmp_path / "m", [Measurement("perplexity", 37.5, "1", conditions={"data": "/home/me/secret/other.txt"})])
    text = (tmp_path / "m" / "README.md").read_text()
    assert "tokens of corpus.txt" in text and "data other.txt" in text and "secret" not in text


def test_an_uncalibrated_model_and_a_local_origin(tmp_path):
    FAMILIES["gpt2"].build().save_pretrained(tmp_path / "dense")
    model = fas.convert(AutoModelForCausalLM.from_pretrained(tmp_path / "dense"), fas.FAS())
    assert getattr(model.config, BASE) == "./dense"
    model.save_pretrained(tmp_path / "m")
    text = (tmp_path / "m" / "README.md").read_text()
    assert "**Not calibrated**" in text and "# dense as a spiking" in text and "base_model" not in text
    # The second conversion is of the same dense model, wherever it was in between.
    assert getattr(AutoModelForCausalLM.from_pretrained(tmp_path / "m").config, BASE) == "./dense"
    assert not hasattr(fas.revert(model).config, BASE)


def test_classes_without_a_pipeline_and_plain_modules(tmp_path):
    model = converted("bert_classifier")
    config = {**model.config.to_dict(), "architectures": ["Mine"]}
    assert "from transformers import Mine" in str(model_card(config))
    del config["model_type"]
    assert "fas.load_module(Mine(), directory)" in str(model_card(config))


def test_a_text_of_ones_own_stays(tmp_path):
    target = tmp_path / "m"
    model = converted(coverage="mlp")
    model.save_pretrained(target)
    own = (target / "README.md").read_text().replace(MARK, "") + "and more"
    (target / "README.md").write_text(own)
    model.timesteps = 2
    model.save_pretrained(target)
    assert (target / "README.md").read_text() == own
    assert json.loads((target / "config.json").read_text())["quantization_config"]["timesteps"] == 2
    before = (target / "config.json").read_text()
    with pytest.raises(CheckpointError, match="was not written by fas: move it away"):
        write_card(target, rows())
    assert (target / "config.json").read_text() == before


def test_no_converted_model(tmp_path):
    FAMILIES["gpt2"].build().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="holds no converted model"):
        write_card(tmp_path)


class Hub:
    """Takes uploads in place of the hub."""

    def __init__(self, card=None):
        self.card, self.files, self.names = card, {}, []

    def create_repo(self, name, **options):
        self.names.append(name)
        return type("Url", (), {"repo_id": name})()

    def create_commit(self, repo_id, operations, **options):
        for operation in operations:
            assert isinstance(operation, CommitOperationAdd)
            self.files[operation.path_in_repo] = Path(operation.path_or_fileobj).read_bytes()

    def file_exists(self, repo_id, name, **options):
        return self.card is not None


@pytest.fixture
def hub(monkeypatch):
    """transformers' own upload, with a hub that is an object."""
    from transformers.utils import hub as theirs

    def make(card=None):
        place = Hub(card)
        monkeypatch.setattr(theirs, "hf_api", lambda: place)
        monkeypatch.setattr("transformers.modeling_utils.hf_api", lambda: place)
        monkeypatch.setattr(transformers_, "HfApi", lambda: place)

        def load(repo_id, **options):
            # Stands for the hub's answer, or for the stock card that transformers makes without one.
            return ModelCard("---\nlibrary_name: transformers\n---\nstock" if card is None else card)

        monkeypatch.setattr(theirs.ModelCard, "load", load)
        return place

    return make


@pytest.mark.parametrize("by", ["push_to_hub", "save_pretrained"])
@pytest.mark.parametrize("there", [None, f"---\nlicense: mit\n---\n{MARK}\nan older one"])
def test_the_card_is_among_the_files_that_go_to_the_hub(tmp_path, hub, by, there):
    place = hub(there)
    converted().save_pretrained(tmp_path / "m")
    write_card(tmp_path / "m", rows())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    if by == "push_to_hub":
        model.push_to_hub("me/gpt2-snn")
    else:
        model.save_pretrained(tmp_path / "gpt2-snn", push_to_hub=True)
    assert place.names[-1].rpartition("/")[2] == "gpt2-snn"
    assert {"config.json", "model.safetensors", "README.md"} <= set(place.files)
    card = place.files["README.md"].decode()
    assert MARK in card and "time steps T | 4" in card and "| perplexity | 37.5 |" in card


def test_a_card_that_somebody_wrote_on_the_hub_stays(tmp_path, hub):
    place = hub("---\nlicense: mit\n---\nmy own words")
    converted().push_to_hub("me/gpt2-snn")
    assert "my own words" in place.files["README.md"].decode()
    converted().save_pretrained(tmp_path / "m", push_to_hub=True)
    assert "my own words" in place.files["README.md"].decode()
