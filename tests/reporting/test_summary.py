from __future__ import annotations

import pytest
from made import converted

import fas


def test_what_is_said_is_what_the_records_hold() -> None:
    model = converted("llama")
    figures = model.records[-1].sites
    found = fas.summarise(model)
    assert sum(map(len, found.sites.values())) == len(model.sites) and len(found.sites["mlp.down_proj"]) == 2
    worst = max(figures.values(), key=lambda site: site["relative_error"])
    assert found.worst is not None and figures[found.worst] == worst
    neurons = {site.path: site.channels for site in model.sites}
    sent = sum(neurons[path] * site["spikes_per_neuron"] for path, site in figures.items())
    assert found.network["spikes_per_neuron"] == pytest.approx(sent / sum(neurons.values()))
    assert model.records[-1].results["spikes_per_neuron"] == pytest.approx(sent / sum(neurons.values()))
    down = [site["relative_error"] for path, site in figures.items() if path.endswith("down_proj")]
    assert found.kinds["mlp.down_proj"]["relative_error"] == pytest.approx(sum(down) / 2)


def test_the_divergence_that_calibration_expects_is_said_where_it_is_known() -> None:
    known, unknown = converted("llama", spike_price=0.001), converted("llama", spike_price=0.0)
    expected = known.records[-1].results["expected_divergence"]
    assert f"expected KL to the dense model {expected:.2g} nats per answer" in "\n".join(fas.summarise(known).lines())
    assert "expected" not in "\n".join(fas.summarise(unknown).lines())


def test_the_text_names_what_stays_float_and_dense() -> None:
    model = converted("llama", exclude=("*.down_proj",))
    found = fas.summarise(model)
    text = "\n".join(found.lines())
    assert f"worst site: {found.worst}" in text
    assert "stays float: " in text and "normalisation at model.layers.*.input_layernorm" in text
    assert "left dense: " in text and "model.layers.*.mlp.down_proj" in text
    assert len(text.splitlines()) <= 10


def test_a_configuration_alone_says_the_same_but_for_floats() -> None:
    model = converted("llama")
    ours, theirs = fas.summarise(model), fas.summarise(model.fas_config)
    assert theirs.floats is None and ours.kinds == theirs.kinds and ours.worst == theirs.worst


def test_without_calibration_there_are_no_errors() -> None:
    model = converted("gpt2", seeds=())
    text = "\n".join(fas.summarise(model).lines())
    assert "error" not in text and "spiking: 9 sites" in text
