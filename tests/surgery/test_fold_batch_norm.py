"""Folding of batch normalisation: exact, and only where it is allowed."""

import copy

import pytest
import tiny_cnns
import torch
from torch import nn

from fas.errors import SiteError
from fas.surgery.fold_batch_norm import fold_batch_norm, prepare_folded


@pytest.mark.parametrize("name", list(tiny_cnns.NETWORKS))
def test_the_function_stays(name):
    model = tiny_cnns.build(name).double()
    x = tiny_cnns.images().double()
    want = model(x)
    pairs = fold_batch_norm(model, {"x": x[:1]})
    assert pairs
    # Float64: a product of weight and scale is rounded once more, in up to ten layers.
    torch.testing.assert_close(model(x), want, rtol=1e-12, atol=1e-12)
    for layer, norm in pairs.items():
        assert isinstance(model.get_submodule(norm), nn.Identity) and model.get_submodule(layer).bias is not None
    assert fold_batch_norm(model, {"x": x[:1]}) == {}


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_by_the_definition(affine, bias):
    model = tiny_cnns.settle(nn.Sequential(nn.Linear(4, 3, bias=bias), nn.BatchNorm1d(3, affine=affine)))
    layer, norm = copy.deepcopy(model)
    assert fold_batch_norm(model, {"input": torch.randn(2, 4)}) == {"0": "1"}
    scale = 1 / (norm.running_var + norm.eps).sqrt()
    gain, shift = (norm.weight, norm.bias) if affine else (torch.ones(3), torch.zeros(3))
    start = layer.bias if bias else torch.zeros(3)
    torch.testing.assert_close(model[0].weight, layer.weight * (scale * gain).view(-1, 1))
    torch.testing.assert_close(model[0].bias, (start - norm.running_mean) * scale * gain + shift)


class Read(nn.Module):
    """A convolution whose output something reads beside the normalisation, or twice."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv, self.norm, self.kind = (
            nn.Conv2d(3, 3, 1),
            nn.BatchNorm2d(3, track_running_stats=kind != "free"),
            kind,
        )

    def forward(self, x):
        y = self.conv(x)
        if self.kind == "sum":
            return self.norm(y) + y
        if self.kind == "between":
            return self.norm(y.relu())
        if self.kind == "twice":
            return self.norm(self.conv(self.norm(y)))
        return self.norm(y)


@pytest.mark.parametrize("kind", ["sum", "between", "twice", "free"])
def test_what_cannot_be_folded_stays(kind):
    model = Read(kind).eval()
    x = tiny_cnns.images()
    want = model(x)
    assert fold_batch_norm(model, {"x": x}) == {}
    assert torch.equal(model(x), want)


def test_the_form_alone():
    folded, other = tiny_cnns.build("resnet"), tiny_cnns.build("resnet")
    x = tiny_cnns.images()
    pairs = fold_batch_norm(folded, {"x": x})
    prepare_folded(other, pairs)
    other.load_state_dict(folded.state_dict())
    assert torch.equal(other(x), folded(x))
    with pytest.raises(SiteError, match=r"VGG has no conv1 with bn1 after it: it is another model"):
        prepare_folded(tiny_cnns.build("vgg"), pairs)


def test_the_mode_is_kept():
    model = tiny_cnns.build("vgg").train()
    fold_batch_norm(model, {"x": tiny_cnns.images()})
    assert model.training and all(module.training for module in model.modules() if not isinstance(module, nn.Identity))
