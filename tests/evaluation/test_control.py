"""The training beside a comparison: which stage a method gets, and its control."""

import pytest
import tiny_cnns
import torch

import fas
from fas.data.for_model import Sample
from fas.evaluation import control
from fas.loading import Loaded


@pytest.mark.parametrize(("method", "stage"), [(fas.FAS, "train_quantised"), (fas.RateNorm, "train_rates")])
def test_rates_are_trained_as_rates_and_all_else_as_a_quantised_network(monkeypatch, method, stage):
    batch = {"x": tiny_cnns.images(4), "labels": torch.arange(4)}
    monkeypatch.setattr(control.Training, "_labelled", lambda self: [batch])
    dense = tiny_cnns.build("vgg")
    recipe = method(timesteps=2)
    model = fas.convert(tiny_cnns.build("vgg"), recipe, probe={"x": batch["x"][:1]}, calibration=[{"x": batch["x"]}])
    training = control.Training(Loaded.of(dense), "images", 1, Sample())
    seconds = training.run(Loaded.of(model), recipe, [{"x": batch["x"]}])
    assert stage in [record.stage for record in model.records] and seconds > 0
    assert training.control is not None and training.control.seconds > 0
