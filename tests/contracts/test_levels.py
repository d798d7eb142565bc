"""Every registered neuron: how many values it can send is the same number wherever it is stated."""

import json

import pytest
from tiny_models import FAMILIES

import fas
from fas import registry
from fas.energy.bill import Hardware
from fas.energy.emission import bits
from fas.energy.estimate import Estimate, count_both, levels_of
from fas.energy.prices import load_prices
from fas.loading import Loaded
from fas.storage.card import write_card


@pytest.mark.parametrize("timesteps", [1, 4, 8])
@pytest.mark.parametrize("name", registry.available("neurons"))
def test_conditions_energy_and_card_state_the_levels_of_the_neuron(name, timesteps, tmp_path):
    # The inputs of OPT's second MLP layers have no sign, which every neuron can carry.
    family = FAMILIES["opt"]
    coverages = ["mlp"] if name == "soft_reset_if" else ["mlp", "linear"]
    for coverage in coverages:
        recipe = fas.FAS(timesteps=timesteps, neuron=name, coverage=coverage)
        model = fas.convert(family.build(), recipe, calibration=[family.batch()])
        expected = max(recipe.build(site).levels(timesteps) for site in model.sites)
        loaded = Loaded("tiny", model, None)
        assert loaded.conditions["levels"] == expected
        assert max(levels_of(model).values()) == expected
        twin = Estimate(*count_both(model, [family.batch()]), levels_of(model), Hardware(load_prices("45nm")))
        assert twin.activation_bits == bits(expected)
        folder = tmp_path / coverage
        model.save_pretrained(folder)
        assert f"up to {expected:,} (zero" in write_card(folder).read_text()
        assert json.loads((folder / "config.json").read_text())["quantization_config"]["timesteps"] == timesteps


def test_two_ranges_have_fewer_levels_than_their_counts_span():
    neuron = registry.load("neurons", "outlier_aware")(signed=True)
    lower, upper = neuron.bounds(8)
    assert upper - lower + 1 == 8161 and neuron.levels(8) == 991
