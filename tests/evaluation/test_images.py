"""Accuracy of an image classifier."""

import pytest
import tiny_cnns
import torch
from torch import nn

import fas
from fas.errors import DataError
from fas.evaluation.images import accuracy_by_step, classify_images
from fas.methods.threshold_balancing import ThresholdBalancing


class Copy(nn.Module):
    """Says what it is given."""

    def forward(self, x):
        return x


def test_shares_of_the_largest_logits():
    logits = torch.eye(7)[[0, 1, 2, 3]] + torch.linspace(0, 0.5, 7)
    batches = [{"x": logits[:3], "labels": torch.tensor([0, 1, 6])}, {"x": logits[3:], "labels": torch.tensor([0])}]
    told = []
    model = Copy().train()
    scores = classify_images(model, batches, progress=lambda *what: told.append(what))
    # The fourth row's five largest are 3, 6, 5, 4, 2.
    assert scores == {"accuracy": 0.5, "top5": 0.75} and told == [(3, 4), (4, 4)] and model.training
    few = [{"x": torch.eye(3), "labels": torch.arange(3)}]
    assert classify_images(model, few) == {"accuracy": 1.0}


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "at least one batch"),
        ([{"x": torch.eye(3)}], "'labels' in every one"),
        ([{"x": torch.eye(3), "labels": torch.tensor([0, 1, 3])}], "labels reach from 0 to 3; the model has 3 classes"),
        ([{"x": torch.eye(3) * torch.nan, "labels": torch.arange(3)}], "NaN on an image"),
    ],
)
def test_what_cannot_be_scored(batches, message):
    with pytest.raises(DataError, match=message):
        classify_images(Copy(), batches)


def test_every_step_of_one_run_is_the_run_of_so_many_steps():
    x, dense = tiny_cnns.images(24, size=10).double(), tiny_cnns.chain()
    labels = dense(x).argmax(-1)
    batches, told = [{"x": x[:20], "labels": labels[:20]}, {"x": x[20:], "labels": labels[20:]}], []
    model = fas.convert(dense, ThresholdBalancing(timesteps=6), probe={"x": x[:1]}, calibration=[{"x": x}])
    model.train()
    shares = accuracy_by_step(model, batches, progress=lambda *what: told.append(what))
    assert told == [(20, 24), (24, 24)] and model.training
    alone = []
    for steps in range(1, 7):
        model.timesteps = steps
        alone.append(classify_images(model, batches)["accuracy"])
    assert shares == alone and len(set(shares)) > 1
    with pytest.raises(DataError, match="'labels' in every one"):
        accuracy_by_step(model, [{"x": x}])
    model.schedule = "layerwise"
    with pytest.raises(ValueError, match="logits_per_step needs the spiking network in the online schedule"):
        accuracy_by_step(model, batches)
