"""Cost models as files: ours, one's own, and what is refused."""

from __future__ import annotations

import re

import pytest

from fas.energy.prices import MODELS, load_prices, shipped
from fas.errors import DataError

OWN = """
title = "chip"
reference = "somebody"
[constants.int32_add]
value = 2
unit = "pJ"
source = "data sheet"
"""


def test_names():
    assert shipped(MODELS) == ["22nm", "45nm", "45nm-dram", "loihi"]


@pytest.mark.parametrize("name", shipped(MODELS))
def test_every_constant_has_a_source(name):
    prices = load_prices(name)
    assert prices.name == name and prices.title and prices.reference
    for constant in prices.constants.values():
        assert len(constant.source) > 20 and constant.value > 0
        assert not constant.unverified or constant.why
    assert prices.unverified == (["evaluation"] if name.startswith("45nm") else [])


def test_horowitz():
    prices = load_prices("45nm")
    assert prices.get("fp32_multiply", "fp32_add") == pytest.approx(4.6)  # the usual FP32 MAC
    assert prices.get("fp16_multiply", "fp16_add") == pytest.approx(1.5)
    assert prices.get("int8_multiply", "int8_add") == pytest.approx(0.23)
    assert prices.get("weight_read") * 64 == 100 and load_prices("45nm-dram").get("weight_read") * 64 == 1300
    assert prices.get("state_access") * 64 == 10


def test_others():
    assert load_prices("22nm").get("int32_add") == 0.05448
    assert [load_prices("loihi").get(n) for n in ("synaptic_operation", "neuron_update", "event")] == [23.6, 81, 1.7]


def test_a_missing_constant_has_no_price():
    assert load_prices("22nm").get("int32_add", "int8_multiply") is None


def test_ones_own(tmp_path):
    path = tmp_path / "chip.toml"
    path.write_text(OWN)
    prices = load_prices(path)
    assert (prices.name, prices.title, prices.get("int32_add")) == ("chip", "chip", 2.0)
    assert load_prices(str(path)) == prices


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"no cost model '7nm': choose one of 22nm, 45nm, 45nm-dram, loihi"):
        load_prices("7nm")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('title = "chip"', "", "cost model chip has no title"),
        ('reference = "somebody"', "reference = 3", "has no reference"),
        ("[constants.int32_add]", "[other]", "has no constants"),
        ("[constants.int32_add]", "[constants.int33_add]", "constant int33_add of cost model chip is unknown"),
        ('source = "data sheet"', "", "needs value, unit and source"),
        ('source = "data sheet"', 'source = " "', "has no source"),
        ("value = 2", "value = -1", "has value -1; expected a number of at least 0"),
        ("value = 2", "value = nan", "has value nan"),
        ("value = 2", "value = true", "has value True"),
        ('unit = "pJ"', 'unit = "nJ"', "is in 'nJ'; expected pJ"),
        ("value = 2", "value = 2\nunverified = true", "is unverified: say why"),
        ("value = 2", "value = 2\ncolour = 1", "has unknown entries colour"),
        ("value = 2", "value = ", "is not a TOML file"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path, before, after, message):
    path = tmp_path / "chip.toml"
    assert before in OWN
    path.write_text(OWN.replace(before, after))
    with pytest.raises(DataError, match=re.escape(message)):
        load_prices(path)
