from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from made import converted
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import fas
from fas.data.text import leading_token
from fas.errors import CheckpointError, DataError, MissingExtraError, NotCalibratedError

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'fas[eval]'")

from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from fas.evaluation import harness
from fas.evaluation.harness import SpikingLM, score
from fas.evaluation.kept import Kept
from fas.evaluation.local_tasks import local_task

QUESTIONS = [
    {"query": f"Question: what is {a} plus {b}?\n", "choices": [str(a + b), str(a * b + 7), "none"], "gold": a % 2}
    for a, b in [(1, 2), (2, 2), (3, 4), (5, 1), (2, 6), (7, 7)]
]
SCHEMAS = [
    {"context_options": [f"It was late, so {a}", f"It was late, so {b}"], "continuation": "went home.", "gold": i % 2}
    for i, (a, b) in enumerate([("Ann", "the owl"), ("Bob", "Bo"), ("Joy", "Jim")])
]
WORDS = [{"context": f"one two three, and then comes number {n}", "continuation": n} for n in ("four", "five", "six")]


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<eos>"])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", pad_token="<eos>")


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=257, n_positions=128, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=256)
    ).eval()


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``dense`` and ``snn``, with tokenizers, and ``data`` with a file of every layout."""
    place = tmp_path_factory.mktemp("harness")
    dense = gpt2()
    dense.save_pretrained(place / "dense")
    rows = torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(0))
    snn = fas.convert(dense, fas.FAS(timesteps=4, neuron="signed_if"), calibration=[{"input_ids": rows}])
    snn.save_pretrained(place / "snn")
    for name in ("dense", "snn"):
        tokenizer().save_pretrained(place / name)
    data = place / "data"
    data.mkdir()
    texts = [{"text": row["query"] + row["choices"][0]} for row in QUESTIONS]
    files = {"piqa": QUESTIONS, "winograd_wsc": SCHEMAS, "lambada_openai": WORDS, "sums": QUESTIONS, "texts": texts}
    for name, content in files.items():
        (data / f"{name}.jsonl").write_text("\n".join(map(json.dumps, content)) + "\n")
    return place


def figures(lm: Any, task: str, places: Path, **options: Any) -> dict[str, float]:
    rows = score(lm, task, task_path=places / "data", **options)
    return {row.quantity: row.value for row in rows if row.quantity != "spikes_per_neuron"}


def raw(lm: Any, task: str, places: Path, **options: Any) -> dict[str, float]:
    """The harness alone, without our ``score``."""
    config = local_task(task, places / "data")
    found = simple_evaluate(
        model=lm, tasks=[config], task_manager=TaskManager(include_defaults=False), bootstrap_iters=0, **options
    )
    return {
        k.partition(",")[0]: v for k, v in found["results"][task].items() if k.endswith(",none") and "stderr" not in k
    }


TASKS = ["piqa", "wsc273", "lambada", "texts"]


@pytest.mark.parametrize("task", TASKS)
def test_dense_network_has_the_figures_of_the_harness(places: Path, task: str) -> None:
    dense = raw(HFLM(pretrained=str(places / "dense"), device="cpu", batch_size=2), task, places)
    ann = figures(SpikingLM(str(places / "snn"), network="ann", device="cpu", batch_size=2), task, places)
    # The dense network inside the converted model is bit-equal to the one it was made of.
    assert ann == dense and ann
    assert all(math.isfinite(value) for value in ann.values())


@pytest.mark.parametrize("task", ["piqa", "texts"])
def test_three_ways_to_the_same_figures(places: Path, task: str) -> None:
    """By name with arguments as the command line passes them, by directory, by a model in memory."""
    named = raw(
        "fas", task, places, model_args=f"pretrained={places / 'snn'},timesteps=3,schedule=online", batch_size=2
    )
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(places / "snn")
    settings = {"timesteps": 3, "schedule": "online", "batch_size": 2}
    held = figures(SpikingLM(model, tokenizer=tokenizer(), **settings), task, places)
    assert held == figures(SpikingLM(str(places / "snn"), **settings), task, places) == named


def test_texts_begin_with_the_token_that_the_tokenizer_adds(places: Path) -> None:
    leading = tokenizer()
    front = processors.TemplateProcessing(single="<eos> $A", special_tokens=[("<eos>", leading.eos_token_id)])
    leading.backend_tokenizer.post_processor = front
    plain, led = (SpikingLM(str(places / "snn"), tokenizer=one, device="cpu") for one in (tokenizer(), leading))
    assert led.tok_encode("ab") == [leading_token(leading), *plain.tok_encode("ab")]
    assert leading_token(tokenizer()) is None


def test_settings_have_an_effect(places: Path) -> None:
    def texts(**settings: Any) -> tuple[float, float | None]:
        lm = SpikingLM(str(places / "snn"), device="cpu", batch_size=3, **settings)
        return figures(lm, "texts", places, limit=2)["byte_perplexity"], lm.spikes_per_neuron

    found = {
        "T = 4": texts(),
        "T = 2": texts(timesteps=2),
        "ann": texts(network="ann"),
        "online": texts(timesteps=2, schedule="online"),
        "instant": texts(timesteps=2, schedule="online", operators="instant"),
    }
    assert len({value for value, _ in found.values()}) == len(found)
    assert found["ann"][1] is None
    few, many = found["T = 2"][1], found["T = 4"][1]
    assert few is not None and many is not None and 0 < few < many
    quantised, spiking = texts(network="quantised", timesteps=2)[0], found["T = 2"][0]
    # Layerwise the spiking network computes the quantised one, whose levels follow T; rounding differs by order.
    assert quantised == pytest.approx(spiking, rel=1e-5)


def test_spikes_are_those_of_the_recording(places: Path) -> None:
    lm = SpikingLM(str(places / "snn"), device="cpu", batch_size=1)
    (*_, first) = score(lm, "texts", task_path=places / "data", limit=1)
    ids = [256, *tokenizer()(json.loads((places / "data/texts.jsonl").read_text().splitlines()[0])["text"]).input_ids]
    with fas.record(lm.model) as spikes, torch.no_grad():
        lm.model(input_ids=torch.tensor([ids[:-1]]))
    assert (first.quantity, first.value) == ("spikes_per_neuron", spikes.spikes_per_neuron)
    score(lm, "texts", task_path=places / "data", limit=1)
    # A second task does not add to the first one's.
    assert lm.spikes_per_neuron == first.value


@pytest.mark.parametrize("network", ["ann", "quantised", "snn"])
def test_a_task_that_was_interrupted_goes_on(places: Path, tmp_path: Path, monkeypatch, network: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(harness, "STRETCH", 4)
    model, answered, answer = fas.load(str(places / "snn")), [], HFLM.loglikelihood

    def found(*, stop: bool = False) -> list[fas.Measurement]:
        def stopping(lm: Any, requests: Any, *arguments: Any, **options: Any) -> Any:
            answered.append(len(requests))
            if stop and len(answered) == 2:
                raise KeyboardInterrupt
            return answer(lm, requests, *arguments, **options)

        monkeypatch.setattr(HFLM, "loglikelihood", stopping)
        answered.clear()
        kept = Kept({"command": "tasks"})
        rows = fas.evaluate(model, tasks=["sums"], task_path=places / "data", network=network, kept=kept)
        kept.close()
        return rows

    whole = found()
    assert [row.quantity for row in whole] == ["acc", "acc_norm", *["spikes_per_neuron"] * (network == "snn")]
    assert answered == [4, 4, 4, 4, 2]
    with pytest.raises(KeyboardInterrupt):
        found(stop=True)
    assert found() == whole and answered == [4, 4, 4, 2]


def test_scores_state_their_conditions(places: Path) -> None:
    lm = SpikingLM(str(places / "snn"), device="cpu", batch_size=4)
    *scores, spikes = score(lm, "piqa", task_path=places / "data", limit=4, fewshot=1)
    assert {one.quantity for one in scores} == {"acc", "acc_norm"} and spikes.quantity == "spikes_per_neuron"
    for one in scores:
        stderr, stated = one.conditions["stderr"], {**one.conditions, "stderr": None}
        assert stated == {"data": "piqa", "samples": 4, "fewshot": 1, "task_version": 1.0, "stderr": None}
        # √(p (1 − p)/(n − 1)) for n = 4 answers.
        assert stderr == pytest.approx(math.sqrt(one.value * (1 - one.value) / 3), abs=1e-12)
    info = lm.get_model_info()["fas"]
    assert info["timesteps"] == 4 and info["network"] == "snn" and info["coverage"] == "linear"


def test_batch_does_not_matter(places: Path) -> None:
    found = [
        figures(SpikingLM(str(places / "snn"), device="cpu", batch_size=size), "lambada", places) for size in (1, 3)
    ]
    # Padding and products of another shape round differently.
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_generation_uses_the_cache(places: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"q": "one two", "a": "three"}) + "\n")
    (tmp_path / "writes.yaml").write_text(
        f"task: writes\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/rows.jsonl}}}}\n"
        "test_split: test\noutput_type: generate_until\ndoc_to_text: '{{q}}'\ndoc_to_target: '{{a}}'\n"
        "generation_kwargs: {until: ['@'], max_gen_toks: 5}\nmetric_list: [{metric: exact_match}]\n"
        "metadata: {version: 1.0}\n"
    )
    lm = SpikingLM(str(places / "snn"), device="cpu", timesteps=2, schedule="online")
    lengths: list[int] = []
    lm.model.register_forward_pre_hook(
        lambda _, __, named: lengths.append(named["input_ids"].shape[1]), with_kwargs=True
    )
    one, _ = score(lm, "writes", task_path=tmp_path)
    assert one.quantity.startswith("exact_match") and one.value == 0.0
    # The prompt once, then one token at a time.
    assert lengths[0] == 7 and set(lengths[1:]) == {1}
    assert lm.spikes_per_neuron


def test_refusals(places: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"dense: convert it first with fas\.convert"):
        SpikingLM(str(places / "dense"), device="cpu")
    unset = fas.convert(gpt2(), fas.FAS(timesteps=4))
    with pytest.raises(NotCalibratedError, match="has no thresholds yet"):
        SpikingLM(unset, tokenizer=tokenizer())
    with pytest.raises(ValueError, match="network is 'brain'; choose one of ann, quantised, snn"):
        SpikingLM(str(places / "snn"), device="cpu", network="brain")  # type: ignore[arg-type]
    lm = SpikingLM(str(places / "snn"), device="cpu")
    with pytest.raises(DataError, match="is not a directory"):
        score(lm, "piqa", task_path=tmp_path / "missing")
    lm.model.set_submodule("transformer.h.0.mlp.c_proj", lm.model.transformer.h[0].mlp.c_proj.dense())
    with pytest.raises(CheckpointError, match=r"has 8 spiking layers where its configuration names 9"):
        SpikingLM(lm.model, tokenizer=tokenizer())
    # The neurons of a layer that is missing are still there where others share them.
    llama = converted("llama")
    llama.set_submodule("model.layers.0.self_attn.k_proj", llama.model.layers[0].self_attn.k_proj.dense())
    with pytest.raises(CheckpointError, match=r"has 14 spiking layers where its configuration names 15"):
        harness._check_spikes(llama, "llama")


def test_a_harness_that_is_not_there_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "fas.evaluation.harness")
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingExtraError, match=r"lm_eval is missing\): pip install 'fas\[eval\]'"):
        importlib.import_module("fas.evaluation.harness")


@pytest.mark.slow
def test_unknown_tasks(places: Path) -> None:
    lm = SpikingLM(str(places / "snn"), device="cpu")
    with pytest.raises(DataError, match=r"no task 'nosuchtask' in .*data \(lambada, lambada_openai, piqa.*`lm_eval ls"):
        score(lm, "nosuchtask", task_path=places / "data")
    with pytest.raises(DataError, match=r"no task 'lambada_open'; .* alike: lambada_openai"):
        score(lm, "lambada_open")


@pytest.mark.slow
def test_the_harness_own_command_line(places: Path) -> None:
    """``python -m fas.evaluation.harness`` is ``lm_eval`` with the backend in it."""
    (places / "sums.yaml").write_text(
        f"task: sums_yaml\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {places}/data/sums.jsonl}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{query}}'\ndoc_to_choice: choices\n"
        "doc_to_target: gold\nmetric_list: [{metric: acc}]\nmetadata: {version: 1.0}\n"
    )
    done = subprocess.run(
        [
            sys.executable, "-m", "fas.evaluation.harness", "--model", "fas",
            "--model_args", f"pretrained={places / 'snn'},timesteps=2", "--tasks", "sums_yaml",
            "--include_path", str(places), "--output_path", str(places / "out.json"), "--batch_size", "2",
        ],
        capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (written,) = places.glob("**/out*.json")
    content = json.loads(written.read_text())
    lm = SpikingLM(str(places / "snn"), device="cpu", timesteps=2, batch_size=2)
    (one, *_) = score(lm, "sums_yaml", task_path=places)
    assert content["results"]["sums_yaml"]["acc,none"] == one.value
    assert content["config"]["fas"]["timesteps"] == 2 and content["config"]["fas"]["spikes_per_neuron"] > 0
