"""Sites of plain convolutional networks: which ReLU a neuron replaces, and which inputs have no sign."""

import pytest
import tiny_cnns
import torch
from torch import nn
from torch.nn import functional

from fas.errors import SiteError
from fas.surgery.flow import Flow
from fas.surgery.probe import is_convolutional
from fas.surgery.sites import find_sites

PROBE = {"x": tiny_cnns.images(1)}


def described(sites):
    return [(s.path, s.role, s.signed, s.activation) for s in sites]


def test_a_chain_with_maxima():
    # ReLU in front of a maximum is absorbed, since the two commute; in front of an average it stays.
    assert described(find_sites(tiny_cnns.build("vgg"), probe=PROBE)) == [
        ("features.0", "conv_input", True, None),
        ("features.4", "conv_input", False, "features.2"),
        ("features.7", "conv_input", False, "features.6"),
        ("features.11", "conv_input", False, "features.9"),
        ("classifier.0", "linear_input", False, None),
        ("classifier.3", "mlp", False, "classifier.1"),
    ]
    averaged = {s.path: s.activation for s in find_sites(tiny_cnns.build("vgg_average"), probe=PROBE)}
    assert averaged["features.4"] is None and averaged["features.7"] == "features.6"


def test_a_residual_sum_keeps_its_relu():
    sites = {s.path: s for s in find_sites(tiny_cnns.build("resnet"), probe=PROBE)}
    assert all(not s.signed for path, s in sites.items() if path != "conv1")
    assert sites["layer1.0.conv2"].activation == "layer1.0.relu"
    # Its output goes into the next sum as well.
    assert sites["layer1.1.conv1"].activation is None
    # Behind a projection nothing but the two convolutions of the next block reads it.
    projected = sites["layer2.0.conv1"]
    assert (projected.activation, projected.also) == ("layer1.1.relu2", ("layer2.0.downsample.0",))


def test_a_relu_module_that_is_used_twice_stays():
    sites = find_sites(tiny_cnns.build("resnet_shared_relu"), probe=PROBE)
    assert all(site.activation is None for site in sites)
    assert [site.signed for site in sites] == [True, *[False] * (len(sites) - 1)]


def test_relu_as_a_function_leaves_the_site_without_a_sign():
    sites = find_sites(tiny_cnns.build("functional"), probe=PROBE)
    assert [(s.path, s.signed, s.activation) for s in sites] == [
        ("stem", True, None), ("conv1", False, None), ("conv2", False, None), ("head", False, None),
    ]  # fmt: skip


def test_an_image_that_happens_to_be_positive_keeps_its_sign():
    assert find_sites(tiny_cnns.build("vgg"), probe={"x": PROBE["x"].abs()})[0].signed


def test_exclusion_and_coverage():
    model = tiny_cnns.build("vgg")
    assert "features.0" not in {s.path for s in find_sites(model, exclude=["features.0"], probe=PROBE)}
    # A layer that stays dense still needs the ReLU in front of it.
    left = find_sites(tiny_cnns.build("resnet"), exclude=["*.downsample.*"], probe=PROBE)
    assert {s.path: s.activation for s in left}["layer2.0.conv1"] is None
    assert [s.path for s in find_sites(model, "mlp", probe=PROBE)] == ["classifier.3"]
    with pytest.raises(SiteError, match=r"ResNet has no site for coverage 'mlp'.*coverage 'linear' takes every conv"):
        find_sites(tiny_cnns.build("resnet"), "mlp", probe=PROBE)
    with pytest.raises(SiteError, match="VGG is not a transformers model, so its attention cannot be reached"):
        find_sites(model, "full", probe=PROBE)


def test_a_plain_module_needs_a_probe():
    with pytest.raises(
        SiteError, match=r"VGG is not a transformers model .* pass probe=\{\.\.\.\}, a batch of one by the"
    ):
        find_sites(tiny_cnns.build("vgg"))


def test_other_activations_are_replaced_where_asked_for():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Conv2d(4, 4, 3), nn.SiLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3)
    )
    probe = {"input": PROBE["x"]}
    assert [s.activation for s in find_sites(model, probe=probe)] == [None, None, None]
    assert [s.signed for s in find_sites(model, probe=probe)] == [True, True, True]
    # SiLU does not commute with a maximum.
    assert [s.activation for s in find_sites(model, probe=probe, replace_activation=True)] == [None, "1", None]


def test_layers_the_probe_does_not_call_are_logged(caplog):
    model = tiny_cnns.build("vgg")
    model.spare = nn.Conv2d(3, 3, 1)
    find_sites(model, probe=PROBE)
    assert [record.getMessage() for record in caplog.records] == ["spare stays dense: the probe run never calls it"]


def test_which_models_are_convolutional():
    assert is_convolutional(tiny_cnns.build("vgg")) and not is_convolutional(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("function", "positive"),
    [
        (lambda x: x.relu(), True),
        (lambda x: functional.max_pool2d(x.relu(), 2), True),
        (lambda x: functional.avg_pool2d(functional.relu(x), 2).flatten(1), True),
        (lambda x: x.relu() + x.sigmoid(), True),
        (lambda x: torch.cat([x.relu(), x.relu()]), True),
        (lambda x: x.relu().mul(2.0), True),
        (lambda x: x.clamp(min=0.5), True),
        (lambda x: torch.clamp(x, min=-1), False),
        (lambda x: x.relu() + x, False),
        (lambda x: x.relu() - 1, False),
        (lambda x: x.relu().mul(-2.0), False),
        (lambda x: x.relu().add(-0.1), False),
        (lambda x: x.relu().sub_(1.0), False),
        (lambda x: torch.cat([x.relu(), x]), False),
        (lambda x: x.clone().relu_(), True),
        (lambda x: functional.gelu(x), False),
    ],
)
def test_what_can_never_be_negative(function, positive):
    x = torch.randn(2, 3, 4, 4)
    flow = Flow()
    with flow:
        result = function(x)
    assert flow.nonnegative(result) == positive
    assert not positive or float(result.min()) >= 0
