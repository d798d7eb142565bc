"""The mapping estimate against numbers worked out by hand, and against a plain enumeration of every connection."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import FAMILIES
from torch import nn

import fas
from fas.energy.prices import shipped
from fas.errors import DataError, FASError, SiteError
from fas.exporting.mapping import CHIPS, Chip, load_chip, map_to_chip

TOY = Chip("toy", "a toy", "nobody", 4, 40, 40 * 32 * 8, 8, 10, 1, {}, ())


@pytest.fixture(scope="module")
def gpt2():
    family = FAMILIES["gpt2"]
    return fas.convert(family.build(), fas.FAS(timesteps=4, coverage="mlp"), calibration=[family.batch()])


class Net(nn.Module):
    """Two convolutions and a linear layer; the first convolution reads the image and does not spike by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2)
        self.head = nn.Linear(8, 5)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.relu2(self.second(self.relu1(self.first(x)))).mean((2, 3)))


@pytest.fixture(scope="module")
def cnn():
    torch.manual_seed(0)
    images = {"x": torch.randn(4, 3, 7, 7)}
    probe = {"x": images["x"][:1]}
    return fas.convert(Net(), fas.FAS(timesteps=4, exclude=["first"]), calibration=[images], probe=probe), images


def test_a_text_model_by_hand(gpt2):
    # Both sites: 48 neurons of an MLP in front of a layer 48 → 32.
    inputs = FAMILIES["gpt2"].batch(2, 5)
    found = map_to_chip(gpt2, TOY, inputs)
    assert [p.site for p in found.placements] == [f"transformer.h.{i}.mlp.c_proj" for i in range(2)]
    for p in found.placements:
        assert (p.neurons, p.outputs, p.synapses, p.weights) == (48, 32, 48 * 32, 48 * 32)
        # 48 neurons: 40 and 8. A core holds 40·32 // 48 = 26 outputs: 26 and 6.
        assert p.cores == 4
    # Four cores a chip: each site has one of its own, and nothing leaves it.
    assert [p.chips for p in found.placements] == [(0, 0), (1, 1)] and found.chips == 2 and found.cores == 8
    assert found.total("off_chip") == 0 and found.unit == "token" and found.left == {}
    assert found.memory_used == 2 * 48 * 32 * 8 / (8 * 40 * 32 * 8) and found.units_used == 2 * 80 / (8 * 40)
    with fas.record(gpt2) as spikes:
        gpt2(**inputs)
    for p in found.placements:
        # Ten tokens; two cores read.
        assert p.spikes == spikes.sites[p.site].spikes / 10 > 0 and p.deliveries == 2 * p.spikes


def test_messages_between_chips_by_hand(gpt2):
    # Three cores a chip, places 0…7. First site: neurons 0, 1; layer 2, 3: 2 is on chip 0, 3 on chip 1.
    found = map_to_chip(gpt2, replace(TOY, cores_per_chip=3), FAMILIES["gpt2"].batch(2, 5))
    one, two = found.placements
    assert one.chips == (0, 1) and two.chips == (1, 2) and found.chips == 3
    assert one.off_chip == pytest.approx(one.spikes, rel=1e-12)  # 40/48 and 8/48 do not sum exactly
    # Second: neurons 4, 5 on chip 1; layer 6, 7 on chip 2.
    assert two.off_chip == pytest.approx(two.spikes, rel=1e-12)
    # Two cores a chip: neurons and layer on chips of their own.
    found = map_to_chip(gpt2, replace(TOY, cores_per_chip=1), FAMILIES["gpt2"].batch(2, 5))
    assert found.chips == 8
    assert [p.off_chip for p in found.placements] == pytest.approx([2 * p.spikes for p in found.placements], rel=1e-12)


def test_without_inputs_there_is_no_traffic(gpt2):
    found = map_to_chip(gpt2, TOY)
    assert found.unit is None and found.placements[0].spikes is None and found.cores == 8
    assert "deliveries" not in {row.quantity for row in found.measurements()}
    rows = list(map_to_chip(gpt2, TOY, FAMILIES["gpt2"].batch()).measurements(model="m"))
    whole = {row.quantity: row for row in rows if "site" not in row.conditions}
    assert whole["cores"].value == 8 and whole["cores"].origin == "estimated" and whole["spikes"].origin == "measured"
    assert whole["off_chip_bits"].unit == "bits/token" and whole["deliveries"].unit == "messages/token"
    assert whole["chips"].conditions == {"model": "m", "chip": "toy", "assumptions": []}
    assert sum(row.value for row in rows if row.quantity == "cores" and "site" in row.conditions) == 8


def test_layers_that_share_a_site_and_operands():
    family = FAMILIES["llama"]
    model = fas.convert(family.build(), fas.FAS(timesteps=4, coverage="full"), calibration=[family.batch()])
    found = map_to_chip(model, TOY)
    (attention,) = [p for p in found.placements if p.site == "model.layers.0.self_attn.q_proj"]
    # q: 32 → 32, k and v: 32 → 16; a core holds 40 outputs of 32 weights.
    assert (attention.neurons, attention.outputs, attention.synapses) == (32, 64, 32 * 64) and attention.cores == 4
    assert len(found.left) == 8 and all("attention" in reason for reason in found.left.values())
    assert len(found.left) + len(found.placements) == len(model.sites)


def connections(shape, out, kernel, stride, padding, dilation, groups, channels):
    """Count by definition which inputs of a map every output of a convolution sees."""
    sizes = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(shape, padding, dilation, kernel, stride, strict=True)
    ]
    number = 0
    for place in itertools.product(*map(range, sizes)):
        for tap in itertools.product(*map(range, kernel)):
            at = [i * s - p + t * d for i, s, p, t, d in zip(place, stride, padding, tap, dilation, strict=True)]
            number += all(0 <= a < n for a, n in zip(at, shape, strict=True))
    return number * out * (channels // groups), sizes[0] * sizes[1]


def test_a_convolution_by_hand(cnn):
    model, images = cnn
    found = map_to_chip(model, TOY, images)
    sites = {p.site: p for p in found.placements}
    second, head = sites["second"], sites["head"]
    synapses, area = connections((7, 7), 8, (3, 3), (2, 2), (1, 1), (1, 1), 2, 6)
    assert area == 16 and synapses == 2400  # per channel: (2 + 3 + 3 + 2)² taps on the map, 3 channels in, 8 out
    # 6·49 = 294 neurons: 8 cores. A channel has 16 outputs, a core 2 of them, of whose 27 weights it has one copy.
    assert (second.neurons, second.outputs, second.synapses) == (294, 128, 2400)
    assert second.weights == 8 * 27 and second.cores == 8 + 4
    assert (head.neurons, head.outputs, head.synapses, head.cores) == (8, 5, 40, 2)
    assert found.unit == "image" and second.deliveries == 4 * second.spikes
    # Neurons on chips 0 and 1, the layer on chip 2.
    assert second.chips == (0, 2) and second.off_chip == pytest.approx(second.spikes, rel=1e-12)
    with fas.record(model) as spikes:
        model(**images)
    assert second.spikes == spikes.sites["second"].spikes / 4
    # Own weights for every position: 128 outputs of 27 weights, 40 to a core.
    apart = {p.site: p for p in map_to_chip(model, replace(TOY, shared_kernels=0), images).placements}["second"]
    assert apart.weights == 128 * 27 and apart.cores == 8 + 4 and apart.synapses == 2400
    # Maps larger than a core: 16 outputs on cores of 10, two for each of 8 channels, each with the kernel.
    small = {p.site: p for p in map_to_chip(model, replace(TOY, neurons_per_core=10), images).placements}["second"]
    assert small.cores == 30 + 16 and small.weights == 16 * 27


@given(
    size=st.integers(4, 9), kernel=st.integers(1, 3), stride=st.integers(1, 3), padding=st.integers(0, 2),
    dilation=st.integers(1, 2), groups=st.sampled_from([1, 2]),
)  # fmt: skip
def test_synapses_of_convolutions(size, kernel, stride, padding, dilation, groups):
    from fas.exporting.mapping import _need

    if dilation * (kernel - 1) + 1 > size + 2 * padding:
        return
    dense = nn.Conv2d(4, 6, kernel, stride, padding, dilation, groups)
    x = torch.zeros(1, 4, size, size)

    class Layer(nn.Module):
        def dense(self) -> nn.Module:
            return dense

    need = _need("c", Layer(), (x[:, 0], dense(x)[:, 0]), TOY)
    pair = [(value, value) for value in (kernel, stride, padding, dilation)]
    assert (need.synapses, need.outputs // 6) == connections((size, size), 6, *pair, groups, 4)


def test_what_cannot_be_mapped(gpt2, cnn):
    with pytest.raises(FASError, match="one output has 48 weights, 384 bits, but a core of toy holds 100"):
        map_to_chip(gpt2, replace(TOY, memory_per_core=100))
    with pytest.raises(SiteError, match="second is a convolution, whose map is known from a run only"):
        map_to_chip(cnn[0], TOY)
    assert map_to_chip(cnn[0], TOY, cnn[1], spikes=False).unit is None


@pytest.mark.parametrize("name", shipped(CHIPS))
def test_chips(name, tmp_path):
    chip = load_chip(name)
    assert chip.weight_bits == 8 and set(chip.assumptions) <= set(chip.sources) and chip.assumptions
    assert all(len(source) > 10 for source in chip.sources.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('title = "', "titel = '"), "is not a TOML file"),
        (('title = "', 'name = "'), "chip own has no title"),
        (("[constants.weight_bits]", "[constants.bits]"), "constant bits of chip own is unknown"),
        (("[constants.weight_bits]", "[other]"), "chip own lacks weight_bits"),
        (("value = 128", "value = 0"), "cores_per_chip of chip own is 0; expected a whole number above zero"),
        (("value = 128", "value = true"), "is True; expected a whole number"),
        (("value = 1\n", "value = 2\n"), "shared_kernels of chip own is 2; expected 0 or 1"),
        (('unit = "cores"', 'unit = "chips"'), "is in 'chips'; expected cores"),
        (
            ('source = "open-neuromorphic.org', 'sauce = "'),
            "cores_per_chip of chip own needs value, unit and source",
        ),
        (("assumption = true", "sure = true"), "unknown entries sure"),
        (('source = "WikiChip, Loihi 2: 1,048,576 neurons on 128 cores"', 'source = " "'), "has no source"),
    ],
)
def test_files_that_describe_no_chip(tmp_path, change, message):
    text = (CHIPS / "loihi2.toml").read_text()
    assert change[0] in text
    (tmp_path / "own.toml").write_text(text.replace(*change))
    with pytest.raises(DataError, match=message):
        load_chip(tmp_path / "own.toml")
    with pytest.raises(ValueError, match="no chip 'loihi9': choose one of loihi2, spinnaker2"):
        load_chip("loihi9")
