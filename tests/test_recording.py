"""fas.record: the spikes of every site, in either execution and schedule."""

import functools

import made
import pytest
import torch
from tiny_models import FAMILIES, logits

import fas

converted = functools.partial(made.converted, timesteps=5, dtype=torch.float64)


def recorded(model, batch, trains=False, **settings):
    with fas.record(model, trains=trains) as recording:
        logits(model, batch, **settings)
    return recording


@pytest.mark.parametrize("name", ["gpt2", "opt", "llama", "t5", "albert"])
@pytest.mark.parametrize("neuron", ["signed_if", "clipped_count", "phase"])
def test_collapsed_and_stepped_count_the_same(name, neuron):
    model, batch = converted(name, neuron=neuron), FAMILIES[name].batch()
    collapsed = recorded(model, batch, execution="collapsed")
    stepped = recorded(model, batch, execution="stepped")
    assert list(collapsed.sites) == list(stepped.sites) == [site.path for site in model.sites]
    assert collapsed.spikes_per_neuron == stepped.spikes_per_neuron > 0
    for path, one in collapsed.sites.items():
        other = stepped.sites[path]
        assert (one.spikes, one.windows, one.timesteps) == (other.spikes, other.windows, 5)
        assert torch.equal(one.silent, other.silent)
        assert one.trains == []


def test_every_site_counts_its_windows_once():
    # Layers that share a site read the same spikes; they are sent, and counted, once.
    model, batch = converted("llama"), FAMILIES["llama"].batch()
    sites = recorded(model, batch).sites
    assert {path: spikes.windows for path, spikes in sites.items()} == {s.path: 27 * s.channels for s in model.sites}


def test_rates():
    model, batch = converted(), FAMILIES["gpt2"].batch()
    recording = recorded(model, batch)
    site = recording.sites["lm_head"]
    assert site.spikes_per_neuron == site.spikes / site.windows
    assert site.firing_rate == pytest.approx(site.spikes_per_neuron / 5)
    total = sum(s.spikes for s in recording.sites.values()) / sum(s.windows for s in recording.sites.values())
    assert recording.spikes_per_neuron == total
    with fas.record(model) as empty:
        pass
    assert empty.spikes_per_neuron == 0 and empty.sites == {}


def test_trains_are_kept_step_by_step():
    model, batch = converted(coverage="mlp", neuron="signed_if"), FAMILIES["gpt2"].batch()
    assert model.execution == "collapsed"
    recording = recorded(model, batch, trains=True)
    counted = recorded(model, batch)
    for path, site in recording.sites.items():
        (train,) = site.trains
        assert train.shape == (5, 3, 9, 48) and train.dtype == torch.uint8
        assert int(train.sum()) == site.spikes == counted.sites[path].spikes
        assert set(train.unique().tolist()) <= {0, 1}
        assert torch.equal(site.silent, (train == 0).flatten(0, -2).all(0))
    assert model.execution == "collapsed"


def test_online_spikes():
    model, batch = converted(coverage="mlp", schedule="online", neuron="signed_if"), FAMILIES["gpt2"].batch()
    recording = recorded(model, batch, trains=True)
    for site in recording.sites.values():
        (train,) = site.trains
        assert train.shape == (5, 3, 9, 48) and site.windows == 27 * 48
        assert int(train.sum()) == site.spikes


def test_graded_spikes_count_as_many():
    model, batch = converted(coverage="mlp", neuron="clipped_count", schedule="online"), FAMILIES["gpt2"].batch()
    train = recorded(model, batch, trains=True).sites["transformer.h.1.mlp.c_proj"].trains[0]
    assert int(train.max()) > 1


def test_runs_add_up():
    model, batch = converted(), FAMILIES["gpt2"].batch()
    with fas.record(model) as twice:
        logits(model, {"input_ids": batch["input_ids"][:1]})
        logits(model, {"input_ids": batch["input_ids"][1:]})
    whole = recorded(model, {"input_ids": batch["input_ids"]})
    for path, site in whole.sites.items():
        assert (twice.sites[path].spikes, twice.sites[path].windows) == (site.spikes, site.windows)
        assert torch.equal(twice.sites[path].silent, site.silent)


def test_recordings_nest():
    model, batch = converted(), FAMILIES["gpt2"].batch()
    with torch.no_grad(), fas.record(model) as outer:
        model(**batch)
        with fas.record(model) as inner:
            model(**batch)
        model(**batch)
    model(**batch)
    for path, site in inner.sites.items():
        assert outer.sites[path].spikes == 3 * site.spikes and outer.sites[path].windows == 3 * site.windows
    assert model.simulation.observers == []


def test_the_other_networks_do_not_spike():
    model, batch = converted(), FAMILIES["gpt2"].batch()
    for network in ("ann", "quantised"):
        model.network = network
        with torch.no_grad(), fas.record(model) as recording:
            model(**batch)
        assert recording.sites == {}


def test_recording_changes_no_answer():
    model, batch = converted(), FAMILIES["gpt2"].batch()
    answer = logits(model, batch)
    with torch.no_grad(), fas.record(model) as recording:
        assert torch.equal(model(**batch).logits, answer)
    assert len(recording.sites) == len(model.sites)


@pytest.mark.parametrize(
    "settings", [{}, {"execution": "stepped"}, {"schedule": "online"}, {"schedule": "online", "operators": "instant"}]
)
def test_spikes_are_counted_where_they_are_made(settings, monkeypatch):
    model, batch = converted(neuron="signed_if"), FAMILIES["gpt2"].batch()
    expected = recorded(model, batch, trains=True, **settings)

    def show(*arguments):
        raise AssertionError("trains were produced to be counted")

    monkeypatch.setattr(type(model.simulation), "show", show)
    for path, site in recorded(model, batch, **settings).sites.items():
        assert torch.equal(site.sent, expected.sites[path].sent) and site.windows == expected.sites[path].windows


def test_the_recording_ends_with_an_error():
    model = converted()
    with pytest.raises(RuntimeError, match="inside"), fas.record(model, trains=True):
        raise RuntimeError("inside")
    assert model.simulation.observers == [] and model.execution == "collapsed"


def test_generation_is_recorded():
    model = converted(coverage="mlp")
    ids = FAMILIES["gpt2"].batch()["input_ids"]
    with fas.record(model) as recording:
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, min_new_tokens=4, pad_token_id=0)
    # The prompt, and each new token but the last, once.
    assert {site.windows for site in recording.sites.values()} == {3 * (9 + 3) * 48}


def test_a_window_that_runs_step_by_step_counts_once():
    model = converted(coverage="mlp", schedule="online", neuron="signed_if")
    ids = FAMILIES["gpt2"].batch(rows=1)["input_ids"]
    arguments = {
        "attention_mask": torch.ones_like(ids), "max_new_tokens": 3, "min_new_tokens": 3, "pad_token_id": 0,
        "do_sample": False,
    }  # fmt: skip
    with fas.record(model) as whole:
        model.generate(ids, **arguments)
    with fas.record(model) as stepwise:
        model.generate(ids, custom_generate=fas.Anytime(margin=float("inf")), **arguments)
    for path, site in whole.sites.items():
        assert (stepwise.sites[path].spikes, stepwise.sites[path].windows) == (site.spikes, site.windows)
        assert stepwise.sites[path].spikes_per_neuron == site.spikes_per_neuron > 0


def test_a_dense_model():
    with pytest.raises(ValueError, match=r"GPT2LMHeadModel is not converted; call fas\.convert first"):
        fas.record(FAMILIES["gpt2"].build()).__enter__()


@pytest.mark.parametrize("schedule", ["layerwise", "online"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "bart"])
def test_keys_and_values_of_a_cache_are_counted_once(name, schedule):
    # As many as the count of operations, and as many as without a cache in one pass over the same tokens.
    model = converted(name, coverage="full", schedule=schedule, neuron="signed_if")
    prompt = FAMILIES[name].batch()["input_ids"]
    length = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    with fas.record(model) as recording:
        ids = model.generate(prompt, **length)
    with fas.count_operations(model) as counts:
        model.generate(prompt, **length)
    for path, site in recording.sites.items():
        found = [entry for (_, place), entry in counts.places.items() if place == path]
        assert site.windows == sum(entry.windows for entry in found), path
        assert site.spikes == sum(entry.spikes for entry in found), path
    if name != "bart" and schedule == "layerwise":
        with fas.record(model) as whole:
            model(ids[:, :-1])
        for path in (p for p in whole.sites if p.endswith((".key", ".value"))):
            assert torch.equal(whole.sites[path].sent, recording.sites[path].sent)
