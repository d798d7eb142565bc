"""What a quantised network learns from a dense one: its answers beside the labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fas.errors import DataError
from fas.training.losses import divergence, predicts_next


class Distillation:
    """(1 − w) · the model's own loss + w · KL(dense ‖ quantised), over the targets of the labels.

    Args:
        teacher: the dense network, left as it is.
        weight: w, from 0 to 1.
    """

    def __init__(self, teacher: nn.Module, weight: float) -> None:
        self.teacher, self.weight = teacher.eval().requires_grad_(False), weight

    def mixed(self, loss: Tensor, inputs: Mapping[str, Any], logits: Tensor) -> Tensor:
        """Return the loss to train by.

        Args:
            loss: the model's own, a scalar.
            inputs: of the forward pass, with ``labels``.
            logits: the model's [B, classes] or [B, L, classes].

        Raises:
            DataError: a regression, or logits that labels do not point at one by one.
        """
        labels = inputs["labels"]
        if logits.shape[:-1] != labels.shape or logits.shape[-1] < 2:
            raise DataError(
                f"logits {list(logits.shape)} for labels {list(labels.shape)}: distillation compares the classes of "
                "every label; leave it out (distillation=0)"
            )
        with torch.no_grad():
            # With the labels: of them a decoder after an encoder makes its input.
            target = self.teacher(**inputs).logits
        if predicts_next(self.teacher):
            logits, target, labels = logits[:, :-1], target[:, :-1], labels[:, 1:]
        return (1 - self.weight) * loss + self.weight * divergence(logits, target, labels != -100)
