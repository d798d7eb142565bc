"""Parameters of a model for as long as a block lasts: other values, no gradients, or back where the block fails."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def undone_on_error(parameters: Iterable[nn.Parameter]) -> Iterator[dict[nn.Parameter, Tensor]]:
    """Give parameters back the values that they have now, which the block gets, if it ends by an error."""
    before = {parameter: parameter.detach().clone() for parameter in parameters}
    try:
        yield before
    except BaseException:
        with torch.no_grad():
            for parameter, value in before.items():
                parameter.copy_(value)
        raise


@contextmanager
def swapped(values: Mapping[nn.Parameter, Tensor]) -> Iterator[None]:
    """Let parameters have other values while the block runs; what it does to those stays in them."""
    present = {parameter: parameter.data for parameter in values}
    for parameter, value in values.items():
        parameter.data = value
    try:
        yield
    finally:
        for parameter, value in present.items():
            parameter.data = value


@contextmanager
def frozen(model: nn.Module, trained: Sequence[nn.Parameter] = ()) -> Iterator[None]:
    """Let gradients reach some parameters only, without dropout."""
    wanted = {id(parameter) for parameter in trained}
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    training = model.training
    model.eval()
    for parameter, _ in before:
        parameter.requires_grad_(id(parameter) in wanted)
    try:
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)
            parameter.grad = None
        model.train(training)
