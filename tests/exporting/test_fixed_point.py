from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import FAMILIES

import fas
from fas.errors import CheckpointError, FASError
from fas.exporting.blocks import Affine, Block, blocks
from fas.exporting.fixed_point import (
    FixedBlock,
    cost,
    export_fixed_point,
    fix,
    load_fixed_point,
    save_fixed_point,
)
from fas.neurons.clipped_count import ClippedCount
from fas.neurons.phase import Phase
from fas.neurons.signed_if import SignedIF
from fas.neurons.soft_reset_if import SoftResetIF

NEURONS = [SoftResetIF(), SignedIF(), SignedIF(signed=False), ClippedCount()]


def random_block(seed: int, neuron: Any, *, channels: int = 7, outputs: int = 3, timesteps: int = 5) -> Block:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    layers = tuple(Affine(f"layer{i}", normal(outputs + i, channels), normal(outputs + i)) for i in range(2))
    v_init = torch.rand(channels, generator=generator) * 0.99
    return Block("site", neuron, timesteps, True, normal(channels) * 2, v_init, normal(channels) * 0.1, layers)


def in_python(fixed: FixedBlock, current: list[list[list[int]]]) -> tuple[list[Any], list[Any]]:
    """The statement in whole numbers of Python: spikes [T][N][C] and the sums of the first layer."""
    steps, most = fixed.timesteps, 2 ** (fixed.membrane_bits - 1) - 1
    theta, start = fixed.threshold.tolist(), fixed.v_init.tolist()
    weight, bias = fixed.layers[0].weight.tolist(), fixed.layers[0].bias.tolist()
    trains, sums = [], []
    potential = [list(start) for _ in current[0]]
    count = [[0] * len(start) for _ in current[0]]
    lowest = -steps if fixed.neuron.signed else 0
    for t in range(steps):
        trains.append([])
        sums.append([])
        for n, row in enumerate(current[min(t, len(current) - 1)]):
            spikes = []
            for c, step in enumerate(row):
                v = max(-most - 1, min(most, potential[n][c] + step))
                if isinstance(fixed.neuron, SoftResetIF):
                    s = 1 if v >= theta[c] else 0
                elif isinstance(fixed.neuron, ClippedCount):
                    s = max(lowest, min(steps, v // theta[c] + count[n][c])) - count[n][c]
                elif v >= theta[c] and count[n][c] < steps:
                    s = 1
                else:
                    s = -1 if v < 0 and count[n][c] > lowest else 0
                potential[n][c], count[n][c] = v - s * theta[c], count[n][c] + s
                spikes.append(s)
            trains[-1].append(spikes)
            sums[-1].append(
                [sum(w * s for w, s in zip(ws, spikes, strict=True)) + b for ws, b in zip(weight, bias, strict=True)]
            )
    return trains, sums


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
@pytest.mark.parametrize("bits", [16, 24])
@pytest.mark.parametrize("steps", [1, 5])
def test_a_run_is_that_of_whole_numbers(neuron: Any, bits: Any, steps: int) -> None:
    fixed = fix(random_block(0, neuron), bits)
    generator = torch.Generator().manual_seed(1)
    # Far beyond the bounds in places, so that potentials saturate; ties at zero current and at the threshold.
    most = 2 ** (bits - 1) - 1
    current = (torch.randn(steps, 6, 7, generator=generator) * 2.0 ** (bits - 2)).clamp(-most, most).int()
    current[:, 0] = 0
    current[:, 1] = fixed.threshold - fixed.v_init
    run = fixed.run(current)
    spikes, sums = in_python(fixed, current.tolist())
    assert run.spikes.tolist() == spikes and run.sums["layer0"].tolist() == sums
    assert run.saturated > 0 and run.peak >= 2 ** (bits - 1)


@given(
    log_theta=st.floats(-30, 30), v_init=st.floats(0, 0.999), offset=st.floats(-5, 5), bits=st.sampled_from([16, 24])
)
def test_thresholds_use_their_bits(log_theta: float, v_init: float, offset: float, bits: Any) -> None:
    one = torch.ones(1)
    block = Block(
        "site", SignedIF(), 4, True, one * log_theta, one * v_init, one * offset * math.exp(log_theta),
        (Affine("layer", torch.ones(1, 1), torch.zeros(1)),),
    )  # fmt: skip
    fixed = fix(block, bits)
    # Eight thresholds fit below the bound, sixteen do not.
    assert 2 ** (bits - 1) // 17 <= int(fixed.threshold) * 1 <= 2 ** (bits - 1) // 8
    theta = Fraction(float(block.threshold.double()))
    used = int(fixed.threshold) * Fraction(2) ** int(fixed.exponent)
    # Half a unit.
    assert abs(used - theta) <= Fraction(2) ** int(fixed.exponent) / 2
    assert 0 <= int(fixed.v_init) <= int(fixed.threshold)
    # To the nearest, both of them.
    assert abs(int(fixed.v_init) - int(fixed.threshold) * Fraction(float(block.v_init))) <= Fraction(1, 2)
    current = torch.tensor([[[0.3], [-1.7], [2.6]]], dtype=torch.float64) * math.exp(log_theta) / 3
    for value, whole in zip(current.flatten().tolist(), fixed.encode(current).flatten().tolist(), strict=True):
        exact = Fraction(value) / Fraction(2) ** int(fixed.exponent) - int(fixed.offset)
        assert abs(whole - exact) <= Fraction(1, 2) or abs(whole) >= 2 ** (bits - 1) - 1


def test_weights_use_their_bits_and_are_the_nearest() -> None:
    block = random_block(2, SignedIF())
    fixed = fix(block)
    theta = torch.ldexp(fixed.threshold.double(), fixed.exponent.int())
    for layer, original in zip(fixed.layers, block.layers, strict=True):
        largest = layer.weight.abs().amax(1)
        assert layer.weight.dtype == torch.int8 and (largest >= 63).all() and (largest <= 127).all()
        folded = original.weight.double() * theta
        unit = torch.ldexp(torch.ones(len(folded), dtype=torch.float64), layer.exponent.int()).unsqueeze(1)
        assert ((layer.weight.double() * unit - folded).abs() <= unit / 2).all()
        # All weights at their largest against the bias.
        worst = int((layer.weight.abs().long().sum(1) + layer.bias.abs().long()).max())
        assert 2 ** (layer.accumulator_bits - 2) <= worst < 2 ** (layer.accumulator_bits - 1)


def test_a_weight_that_is_a_power_of_two_times_127_is_exact() -> None:
    one = torch.zeros(1)
    layer = Affine("layer", torch.tensor([[127 / 64]]), torch.zeros(1))
    fixed = fix(Block("site", SoftResetIF(), 4, True, one, one, one, (layer,)))
    assert fixed.layers[0].weight.tolist() == [[127]] and fixed.layers[0].exponent.tolist() == [-6]


def test_outputs_approach_the_model_with_the_bits(tmp_path: Path) -> None:
    chosen = FAMILIES["gpt2"]
    model = fas.convert(chosen.build(), fas.FAS(timesteps=6, neuron="signed_if"), calibration=[chosen.batch()])
    inputs = chosen.batch(seed=3)
    few, many = (
        export_fixed_point(model, tmp_path / f"{bits}.safetensors", inputs, membrane_bits=bits)  # type: ignore[arg-type]
        for bits in (16, 24)
    )
    assert [one.site for one in few] == [site.path for site in model.sites]
    for one, other in zip(few, many, strict=True):
        # Half a unit of 2^(bits − 5) in a threshold, at least.
        assert one.threshold_error <= 2.0**-12 and other.threshold_error <= 2.0**-20
        # 127 steps up to the largest weight of an output, half of them where the power of two is unlucky.
        assert 0 < one.weight_error < 0.03 and one.accumulator_bits <= 20
        assert other.spike_errors < 1e-3 and other.spike_errors <= one.spike_errors < 0.01
        assert 0 < other.relative_error < 0.05
    errors = [sum(one.relative_error for one in costs) for costs in (few, many)]
    assert errors[1] < errors[0]


def test_with_exact_weights_only_rounding_of_the_input_is_left() -> None:
    """Powers of two everywhere: the run in whole numbers is the model's own."""
    weight = torch.tensor([[1.0, -0.5, 0.25], [2.0, 4.0, -1.0]])
    block = Block(
        "site", SignedIF(), 4, True, torch.zeros(3), torch.full((3,), 0.5), torch.zeros(3),
        (Affine("layer", weight, torch.tensor([0.5, -1.0])),),
    )  # fmt: skip
    fixed = fix(block)
    current = torch.tensor([[[0.25, -0.75, 3.0], [0.5, 0.0, -0.125]]])
    _, (layer,) = block.modules()
    with torch.no_grad():
        expected = layer(current[0])
    assert torch.equal(fixed.output(fixed.run(fixed.encode(current)))[0].float(), expected)


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
def test_to_the_last_bit_there_and_back(neuron: Any, tmp_path: Path) -> None:
    file = tmp_path / "deep" / "model.safetensors"
    written = [fix(random_block(seed, neuron), 24) for seed in range(1)]
    save_fixed_point(written, file)
    (read,) = load_fixed_point(file)
    (block,) = written
    for name in ("path", "neuron", "timesteps", "even", "membrane_bits"):
        assert getattr(read, name) == getattr(block, name)
    for name in ("threshold", "v_init", "offset", "exponent"):
        assert getattr(read, name).dtype == getattr(block, name).dtype
        assert torch.equal(getattr(read, name), getattr(block, name))
    for one, other in zip(read.layers, block.layers, strict=True):
        assert one.path == other.path
        for name in ("weight", "bias", "exponent"):
            assert getattr(one, name).dtype == getattr(other, name).dtype
            assert torch.equal(getattr(one, name), getattr(other, name))
    current = torch.randn(1, 4, 7)
    assert torch.equal(read.run(read.encode(current)).spikes, block.run(block.encode(current)).spikes)
    first = file.read_bytes()
    save_fixed_point([read], file)
    assert file.read_bytes() == first and [path.name for path in file.parent.iterdir()] == ["model.safetensors"]


def test_online_runs_step_by_step() -> None:
    chosen = FAMILIES["gpt2"]
    model = fas.convert(
        chosen.build(), fas.FAS(timesteps=4, schedule="online", neuron="signed_if"), calibration=[chosen.batch()]
    )
    for block in blocks(model, chosen.batch(2, 5, seed=3)):
        found = cost(block, fix(block, 24))
        # Differences of running means in float32 against whole numbers.
        assert found.spike_errors < 2e-3 and found.relative_error < 0.05


def test_refusals(tmp_path: Path) -> None:
    one = torch.zeros(1)
    layer = Affine("layer", torch.full((1, 1), 1e-20), torch.ones(1))
    with pytest.raises(FASError, match=r"Phase sends digits.*neuron='signed_if', 'clipped_count'"):
        fix(Block("site", Phase(), 4, True, one, one, one, (layer,)))
    with pytest.raises(ValueError, match="membrane_bits is 8; choose 16 or 24"):
        fix(Block("site", SignedIF(), 4, True, one, one, one, (layer,)), 8)  # type: ignore[arg-type]
    with pytest.raises(FASError, match=r"layer: a sum of weights and bias can need 33 bits.*bias is too large"):
        fix(Block("site", SignedIF(), 4, True, one, one, one, (layer,)))
    with pytest.raises(FASError, match="block site has no trace"):
        cost(random_block(0, SignedIF()), fix(random_block(0, SignedIF())))
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_fixed_point(tmp_path / "missing.safetensors")
    from safetensors.torch import save_file

    save_file({"a": one}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="is no model in whole numbers"):
        load_fixed_point(tmp_path / "other.safetensors")
    save_file({"a": one}, tmp_path / "new.safetensors", {"fixed_point": '{"format": 7}'})
    with pytest.raises(CheckpointError, match="is of format 7"):
        load_fixed_point(tmp_path / "new.safetensors")
    entry = (
        '{"format": 2, "blocks": [{"site": "s", "neuron": "signed_if", "signed": true, "timesteps": 4, "even": true, '
    )
    save_file({"a": one}, tmp_path / "cut.safetensors", {"fixed_point": entry + '"membrane_bits": 16, "layers": []}]}'})
    with pytest.raises(CheckpointError, match=r"lacks 'neurons/s/threshold': it is damaged"):
        load_fixed_point(tmp_path / "cut.safetensors")


def test_a_site_and_its_layer_of_one_name_round_trip(tmp_path: Path) -> None:
    # As in every model: sites are called like the first layer behind them.
    block = random_block(0, SignedIF(), channels=7, outputs=3)
    block = replace(block, layers=(replace(block.layers[0], path=block.path), *block.layers[1:]))
    written = fix(block)
    save_fixed_point([written], tmp_path / "f")
    (read,) = load_fixed_point(tmp_path / "f")
    assert torch.equal(read.exponent, written.exponent) and len(read.exponent) == 7
    assert torch.equal(read.layers[0].exponent, written.layers[0].exponent)
    current = torch.randn(1, 4, 7)
    assert torch.equal(
        read.output(read.run(read.encode(current))), written.output(written.run(written.encode(current)))
    )
