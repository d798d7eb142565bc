"""Up to a hub and down again, over HTTP: the files of a commit, the model card, loading by name, the command line.

The hub is a server of this test (``hub_server``). Small files go into the commit as they do on the real one; the upload
of large files, which huggingface_hub does by itself, is not part of it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import serving
from huggingface_hub import ModelCard

from fas.storage.directory import MARK

# HF_ENDPOINT is read once, when huggingface_hub is imported: all of it runs in a process of its own.
SESSION = """
import json, sys
from pathlib import Path

import torch
from huggingface_hub import HfApi
from tiny_models import FAMILIES, logits
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import fas
from fas.cli.main import app
from fas.runtime.transformers_ import ConvertedModel
from fas.types import Measurement

tokenizer = AutoTokenizer.from_pretrained(Path(fas.__file__).parent / "assets" / "stdlib-gpt2")
family, found, folder = FAMILIES["gpt2"], {}, Path.cwd()
batch = family.batch()

def cli(*arguments):
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout

def same(one, other):
    return isinstance(one, ConvertedModel) and torch.equal(logits(one, batch), logits(other, batch))

dense = family.build(vocab_size=len(tokenizer))
dense.push_to_hub("me/dense")
snn = fas.convert(AutoModelForCausalLM.from_pretrained("me/dense"), fas.FAS(timesteps=4), calibration=[batch])

tokenizer.push_to_hub("me/x")
snn.push_to_hub("me/x")
loaded = AutoModelForCausalLM.from_pretrained("me/x")
found["loaded"] = same(loaded, snn) and [site.path for site in loaded.sites] == [site.path for site in snn.sites]
found["tokens"] = AutoTokenizer.from_pretrained("me/x")("def f")["input_ids"] == tokenizer("def f")["input_ids"]

(folder / "text.txt").write_text("def f(x):\\n    return x\\n" * 40)
rows = cli("evaluate", "me/x", "--data", folder / "text.txt", "--window", "16", "--test-tokens", "64", "--json")
found["rows"] = json.loads(rows)
snn.save_pretrained(folder / "snn")
tokenizer.save_pretrained(folder / "snn")
(folder / "rows.json").write_text(rows)
cli("evaluate", folder / "snn", "--data", folder / "text.txt", "--window", "16", "--test-tokens", "64", "--card")
HfApi().create_repo("me/folder")
HfApi().upload_folder(folder_path=folder / "snn", repo_id="me/folder")
measured = AutoModelForCausalLM.from_pretrained("me/folder")
found["measured"] = same(measured, snn)
measured.push_to_hub("me/again")

measured.push_to_hub("me/edited")
measured.save_pretrained(folder / "by-name", push_to_hub=True, repo_id="other/place")
card = Path("card.md")
card.write_text("# My own words")
HfApi().upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id="me/edited")
measured.push_to_hub("me/edited")
print("FOUND" + json.dumps(found))
"""


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """Run everything once; return what it found, and the hub with what it holds."""
    folder, tests = tmp_path_factory.mktemp("hub"), Path(__file__).parents[1]
    with serving() as hub:
        own = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_of_the_test", "HF_HOME": str(folder / "home")}
        offline = {name: "0" for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")}
        environment = {**os.environ, **own, **offline, "PYTHONPATH": str(tests), "NO_PROXY": "127.0.0.1"}
        done = subprocess.run(
            [sys.executable, "-c", SESSION], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr[-4000:]
        found = json.loads(done.stdout.partition("FOUND")[2])
    return found, hub


def card(hub, name):
    return ModelCard(hub.files[name]["README.md"].decode())


def test_a_commit_has_weights_configuration_and_card(session):
    _, hub = session
    first = {name: paths for name, paths in reversed(hub.commits)}
    assert first["me/x"] == ["README.md", "tokenizer.json", "tokenizer_config.json"]
    again = next(paths for name, paths in hub.commits[2:] if name == "me/x")
    assert {"README.md", "config.json", "model.safetensors"} <= set(again)
    stated = json.loads(hub.files["me/x"]["config.json"])["quantization_config"]
    assert stated["quant_method"] == "fas" and stated["timesteps"] == 4 and stated["sites"]
    assert "other/place" in hub.files and "model.safetensors" in hub.files["other/place"]


def test_a_name_loads_the_spiking_model_and_its_tokenizer(session):
    found, _ = session
    assert found["loaded"] and found["tokens"]


def test_the_card_takes_the_place_of_an_empty_form_and_names_the_dense_model(session):
    _, hub = session
    # The tokenizer came first, and transformers with a form for a card.
    found = card(hub, "me/x")
    assert MARK in found.content
    assert found.data.library_name == "fas" and found.data.base_model == "me/dense"
    assert found.data.pipeline_tag == "text-generation" and "spiking-neural-network" in found.data.tags
    assert "| time steps T | 4 |" in found.content


def test_the_command_line_takes_a_name(session):
    found, _ = session
    networks = {row["conditions"]["network"] for row in found["rows"] if row["quantity"] == "perplexity"}
    assert "snn" in networks and {row["conditions"]["model"] for row in found["rows"]} == {"me/x"}


def test_measured_figures_travel_with_the_model(session):
    found, hub = session
    assert found["measured"]
    value = next(
        row["value"]
        for row in found["rows"]
        if row["quantity"] == "perplexity" and row["conditions"]["network"] == "snn"
    )
    for name in ("me/folder", "me/again", "other/place"):
        assert f"{value:.4g}" in card(hub, name).content, name
    assert f"{value:.4g}" not in card(hub, "me/x").content


def test_a_card_in_somebodys_own_words_stays(session):
    _, hub = session
    assert card(hub, "me/edited").text.strip() == "# My own words"
    assert [paths for name, paths in hub.commits if name == "me/edited"][-1].count("model.safetensors") == 1
