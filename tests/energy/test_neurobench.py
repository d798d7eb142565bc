"""NeuroBench's metrics against loops over recorded spikes, and against its package where it is installed."""

from __future__ import annotations

import functools
import importlib.util
import sys

import made
import pytest
import torch
from tiny_models import FAMILIES

import fas
from fas.energy.neurobench import neurobench_metrics, neurobench_package_metrics
from fas.errors import MissingExtraError

package = pytest.mark.skipif(
    importlib.util.find_spec("neurobench") is None,
    reason="the neurobench package is not installed: pip install neurobench (brings torchaudio)",
)


converted = functools.partial(made.converted, timesteps=5)


def test_by_a_loop():
    model, batch = converted("gpt2", coverage="mlp"), FAMILIES["gpt2"].batch()
    found = neurobench_metrics(model, batch)
    with torch.no_grad(), fas.record(model, trains=True) as spikes:
        model(**batch)
    zeros = neurons = additions = 0
    for site in spikes.sites.values():
        for step in site.trains[0]:
            zeros, neurons = zeros + int((step == 0).sum()), neurons + step.numel()
            additions += int((step != 0).sum()) * 32
    dense = 27 * (2 * (32 * 96 + 32 * 32 + 32 * 48) + 32 * 100)
    assert found["activation_sparsity"] == pytest.approx(zeros / neurons)
    assert found["Effective_ACs"] == additions / 3 and found["Effective_MACs"] == dense / 3
    assert found["Dense"] == (dense + 5 * 2 * 27 * 48 * 32) / 3
    assert found["membrane_updates"] == neurons / 3
    assert found["footprint"] == sum(p.numel() * 4 for p in model.parameters())
    assert found["connection_sparsity"] == 0


@package
@pytest.mark.parametrize(
    ("name", "options"),
    [("llama", {}), ("llama", {"coverage": "mlp"}), ("llama", {"neuron": "phase", "exclude": ("lm_head",)})],
)
def test_the_package_says_the_same(name, options):
    model, batch = converted(name, **options), FAMILIES[name].batch()
    own, theirs = neurobench_metrics(model, batch), neurobench_package_metrics(model, batch)
    assert {"footprint", "activation_sparsity", "Effective_MACs", "Effective_ACs", "Dense"} == set(theirs)
    # Counts are whole numbers divided by three.
    assert {name: own[name] for name in theirs} == pytest.approx(theirs, rel=1e-12)


@package
def test_where_the_package_counts_otherwise():
    # Graded spikes are multiply-adds to it; the sum is the same.
    model, batch = converted("llama", neuron="clipped_count"), FAMILIES["llama"].batch()
    own, theirs = neurobench_metrics(model, batch), neurobench_package_metrics(model, batch)
    assert theirs["Effective_MACs"] > own["Effective_MACs"] == 0
    assert theirs["Effective_MACs"] + theirs["Effective_ACs"] == pytest.approx(own["Effective_ACs"], rel=1e-12)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "neurobench.hooks.layer", None)
    monkeypatch.setitem(sys.modules, "neurobench", None)
    with pytest.raises(MissingExtraError, match="pip install neurobench"):
        neurobench_package_metrics(converted("gpt2", coverage="mlp"), FAMILIES["gpt2"].batch())
