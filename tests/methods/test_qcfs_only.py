"""QCFS without calibration, against equations 12 to 14 of Bu et al. written down plainly."""

import pytest
import tiny_cnns
import torch

import fas
from fas.methods.qcfs_only import QCFSOnly
from fas.stages.set_thresholds import SetThresholds
from fas.surgery.replace import populations


@pytest.mark.parametrize("levels", [1, 4, 7])
def test_the_quantised_network_and_the_spiking_one(levels):
    x = tiny_cnns.images(4, size=10).double()
    method = QCFSOnly(timesteps=levels, levels=levels)
    model = fas.convert(tiny_cnns.chain(), method, probe={"x": x[:1]}, calibration=[{"x": x}]).double()
    layers = tiny_cnns.layers_of(model)
    with torch.no_grad():
        value = layers[0](x)
        thresholds = [p.threshold for p in populations(model).values()]
        for layer, threshold in zip(layers[1:], thresholds, strict=True):
            # Equation 12: λ · clip((1/L) ⌊zL/λ + 1/2⌋, 0, 1).
            value = layer(threshold * ((value * levels / threshold + 0.5).floor() / levels).clamp(0, 1))
        model.network = "quantised"
        torch.testing.assert_close(model(x), value, rtol=0, atol=1e-9)  # float64 sums in another order
        model.network, model.schedule = "snn", "layerwise"
        torch.testing.assert_close(model(x), value, rtol=0, atol=1e-9)
        model.schedule = "online"
        trains, answers = tiny_cnns.simulate(layers, x, thresholds, levels, 0.5)
        with fas.record(model) as spikes:
            torch.testing.assert_close(model(x), answers[-1], rtol=0, atol=1e-9)
    assert [s.spikes for s in spikes.sites.values()] == [float(train.sum()) for train in trains]


def test_stages_and_fields():
    assert QCFSOnly().stages() == (SetThresholds(rule="error"),)
    assert QCFSOnly(initial="percentile", percentile=99).stages() == (SetThresholds("percentile", 99),)
    with pytest.raises(ValueError, match="initial is 'learned'; choose one of error, maximum, percentile"):
        QCFSOnly(initial="learned")


def test_thresholds_can_be_learned():
    x = tiny_cnns.images(4, size=10).double()
    model = fas.convert(tiny_cnns.chain(), QCFSOnly(), probe={"x": x[:1]}, calibration=[{"x": x}])
    model.network = "quantised"
    model(x).square().mean().backward()
    gradients = [p.log_threshold.grad for p in populations(model).values()]
    assert all(gradient is not None and bool(gradient.any()) for gradient in gradients)
