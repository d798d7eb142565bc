"""Accuracy of an image classifier."""

import pytest
import torch
from torch import nn

from fas.errors import DataError
from fas.evaluation.classify import classify_images


class Copy(nn.Module):
    """Says what it is given."""

    def forward(self, x):
        return x


def test_shares_of_the_largest_logits():
    logits = torch.eye(7)[[0, 1, 2, 3]] + torch.linspace(0, 0.5, 7)
    batches = [{"x": logits[:3], "labels": torch.tensor([0, 1, 6])}, {"x": logits[3:], "labels": torch.tensor([0])}]
    told = []
    model = Copy().train()
    scores = classify_images(model, batches, progress=lambda *what: told.append(what[1:]))
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
