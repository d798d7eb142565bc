"""Stochastic gradient descent on batches in memory, for the stages that train a network by its own loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fas.errors import CalibrationError
from fas.types import Progress

Batch = Mapping[str, Tensor]


def descend(
    parameters: Sequence[nn.Parameter],
    batches: Sequence[Batch],
    loss: Callable[[Batch], Tensor],
    *,
    label: str,
    epochs: int,
    learning_rate: float,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[float]:
    """Minimise a loss by SGD with a cosine decay of the rate to zero.

    Args:
        parameters: what is trained; others get no gradient.
        batches: visited in a new order every epoch.
        loss: scalar of one batch.
        label: what is trained, for messages.
        epochs: passes over the batches.
        learning_rate: at the first step.
        momentum: of SGD.
        weight_decay: of SGD.
        seed: of the order.
        progress: told after each step.

    Returns:
        The loss of every step.

    Raises:
        CalibrationError: no batches, or a loss that is not finite.
    """
    if not batches:
        raise CalibrationError("no training data: at least one batch is needed")
    optimizer = torch.optim.SGD(parameters, lr=learning_rate, momentum=momentum, weight_decay=weight_decay)
    total = epochs * len(batches)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, total))
    order = torch.Generator().manual_seed(seed)
    history: list[float] = []
    for _ in range(epochs):
        for i in torch.randperm(len(batches), generator=order).tolist():
            with torch.enable_grad():
                value = loss(batches[i])
                if not bool(value.isfinite()):
                    raise CalibrationError(
                        f"{label}: the loss is {float(value.detach()):g} after {len(history)} batches: lower the "
                        f"learning rate ({learning_rate:g}) or check the data"
                    )
                gradients = torch.autograd.grad(value, list(parameters), allow_unused=True)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            schedule.step()
            history.append(float(value.detach()))
            if progress is not None:
                progress(label, len(history), total)
    for parameter in parameters:
        parameter.grad = None
    return history


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


def answer(output: object) -> Tensor:
    """Return the logits of a model's output: the tensor itself, or its ``logits``."""
    found = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(found, Tensor):
        raise CalibrationError(f"the model returns a {type(output).__name__} without logits; stages train on logits")
    return found


def inputs_of(batch: Batch) -> dict[str, Tensor]:
    """Return a batch without its labels."""
    return {name: value for name, value in batch.items() if name != "labels"}


def check_descent(*, epochs: int, learning_rate: float, least_epochs: int = 1) -> None:
    """Refuse settings outside their range.

    Raises:
        ValueError: the settings are named.
    """
    if epochs < least_epochs or not learning_rate > 0:
        raise ValueError(
            f"epochs is {epochs} and learning_rate {learning_rate}: expected at least {least_epochs} epochs and a "
            "positive rate"
        )


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean cross-entropy of a classifier against ``labels`` [B], in nats.

    Raises:
        CalibrationError: a batch without labels.
    """
    if "labels" not in batch:
        raise CalibrationError(
            f"a training batch has no labels (keys {sorted(batch)}): add 'labels', class indices [B]"
        )
    return nn.functional.cross_entropy(answer(model(**inputs_of(batch))), batch["labels"])
