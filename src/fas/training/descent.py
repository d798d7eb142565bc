"""Gradient descent on batches in memory, for the stages that train a network by its own loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fas.errors import CalibrationError, DataError
from fas.layers.population import Population
from fas.surgery.parameters import undone_on_error
from fas.surgery.replace import neuron_parameters
from fas.types import V_INIT_MAX, Kept, Progress

Batch = Mapping[str, Tensor]
# The part of a descent that is kept: the last epoch.
_EPOCH = "epoch"


def descend(
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    loss: Callable[[Batch], Tensor],
    *,
    label: str,
    epochs: int,
    seed: int = 0,
    after: Callable[[], None] | None = None,
    progress: Progress | None = None,
    kept: Kept | None = None,
) -> list[float]:
    """Minimise a loss, the rate falling to zero as a cosine; an error leaves the parameters as they were.

    ``kept`` has the last epoch of an interrupted run of the same descent, and takes those of this one; for SGD.

    Returns:
        The loss of every step.

    Raises:
        CalibrationError: no batches, or a loss that is not finite.
    """
    check_batches(batches, "training")
    parameters, total = optimizer.param_groups[0]["params"], epochs * len(batches)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, total))
    order = torch.Generator().manual_seed(seed)
    with undone_on_error(parameters):
        history = _resumed(optimizer, schedule, kept)
        for epoch in range(epochs):
            batches_of_epoch = torch.randperm(len(batches), generator=order).tolist()
            if epoch < len(history) // len(batches):
                continue
            for i in batches_of_epoch:
                with torch.enable_grad():
                    value = loss(batches[i])
                    if not bool(value.isfinite()):
                        raise CalibrationError(
                            f"{label}: the loss is {float(value.detach()):g} after {len(history)} batches: lower the "
                            f"learning rate ({optimizer.defaults['lr']:g}) or check the data"
                        )
                    gradients = torch.autograd.grad(value, parameters, allow_unused=True)
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.grad = gradient
                optimizer.step()
                schedule.step()
                if after is not None:
                    after()
                history.append(float(value.detach()))
                if progress is not None:
                    progress(f"{label}, loss {history[-1]:.4f}", len(history), total)
            if kept is not None:
                state = [optimizer.state[p].get("momentum_buffer") for p in parameters]
                tensors = {f"value.{i}": p.detach() for i, p in enumerate(parameters)}
                tensors |= {f"momentum.{i}": x for i, x in enumerate(state) if x is not None}
                kept.add(_EPOCH, [history, schedule.state_dict()], tensors)
    for parameter in parameters:
        parameter.grad = None
    return history


@torch.no_grad()
def _resumed(optimizer: Any, schedule: Any, kept: Kept | None) -> list[float]:
    """Put parameters, optimiser and schedule where the last epoch has left them; return the losses so far."""
    found = None if kept is None else kept.found(_EPOCH)
    if found is None:
        return []
    (history, state), tensors = found
    schedule.load_state_dict(state)
    optimizer.param_groups[0]["lr"] = state["_last_lr"][0]
    for i, parameter in enumerate(optimizer.param_groups[0]["params"]):
        parameter.copy_(tensors[f"value.{i}"])
        if f"momentum.{i}" in tensors:
            optimizer.state[parameter]["momentum_buffer"] = tensors[f"momentum.{i}"].to(parameter.device)
    return list(history)


@torch.no_grad()
def bound_potentials(neurons: Iterable[Population]) -> None:
    """Bring v_0 of neurons back into [0, θ), where the closed forms over time hold."""
    for population in neurons:
        population.v_init.clamp_(0, V_INIT_MAX)


def dense_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return what the dense network has and may be trained: everything but the neurons and their corrections."""
    own = neuron_parameters(model)
    return [p for name, p in model.named_parameters() if name not in own and p.requires_grad]


def check_batches(batches: Sequence[Batch], use: str = "calibration") -> None:
    """Refuse data of which there is none.

    Raises:
        CalibrationError: no batches, or an empty one.
    """
    if not batches:
        raise CalibrationError(f"no {use} data: at least one batch is needed")
    for i, batch in enumerate(batches):
        if not all(value.numel() for value in batch.values() if isinstance(value, Tensor)):
            raise CalibrationError(f"{use} batch {i} of {len(batches)} is empty: leave it out")


def answer(output: object) -> Tensor:
    """Return the logits of a model's output: the tensor itself, or its ``logits``."""
    found = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(found, Tensor):
        raise CalibrationError(f"the model returns a {type(output).__name__} without logits; stages train on logits")
    return found


def mask_of(inputs: Mapping[str, Tensor], logits: Tensor) -> Tensor | None:
    """Return which answers of a model [*B] are not padding, None where nothing says so.

    Those of a decoder are told by its own mask alone.
    """
    mask = inputs.get("decoder_attention_mask" if "decoder_input_ids" in inputs else "attention_mask")
    return mask if mask is not None and mask.shape == logits.shape[:-1] else None


def labels_of(batch: Mapping[str, Any]) -> Any:
    """Return the labels of a batch or of a row.

    Raises:
        DataError: there are none.
    """
    found = batch.get("labels")
    if found is None:
        raise DataError(
            f"a batch or row has {sorted(batch)} but no 'labels': class indices [B], or of language models "
            "language_modelling(rows)"
        )
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
        DataError: a batch without labels.
    """
    labels = labels_of(batch)
    return nn.functional.cross_entropy(answer(model(**inputs_of(batch))), labels)
