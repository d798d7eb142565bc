"""The losses of training: against labels, and against a teacher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.loss.loss_utils import ForCausalLMLoss

from fas.surgery.probe import evaluating


def alignment(students: list[Tensor], teachers: list[Tensor]) -> Tensor:
    """Mean over layers of the squared error relative to the variance of the teacher.

    Args:
        students: output of every spiking layer [*B, C].
        teachers: the same of the teacher, no gradient.

    Returns:
        Scalar; 0 if equal, 1 if a layer knows no more than the teacher's mean.

    Source: FAS (arXiv 2502.04405), activation alignment. Deviation: relative, so one weight serves all scales.
    """
    terms = []
    for student, teacher in zip(students, teachers, strict=True):
        spread = teacher.float().var(correction=0).clamp_min(1e-12)
        terms.append((student.float() - teacher.float()).square().mean() / spread)
    return torch.stack(terms).mean()


def divergence(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over tokens of KL(teacher ‖ student) in nats.

    Args:
        student: logits [*B, classes].
        teacher: logits, no gradient.
        mask: positions that count, shape [*B]; all if None.

    Returns:
        Scalar.

    Source: Hinton et al. 2015 (arXiv 1503.02531) at temperature 1; the released code of FAS sums over tokens.
    """
    log_student, log_teacher = student.float().log_softmax(-1), teacher.float().log_softmax(-1)
    tokens = functional.kl_div(log_student, log_teacher, log_target=True, reduction="none").sum(-1)
    return tokens.mean() if mask is None else tokens[mask.bool()].mean()


def mean_loss(model: Any, dataset: Any, collator: Callable[[list[Any]], dict[str, Any]], batch_size: int) -> float:
    """Return the model's own loss, averaged over all targets, in nats for language models and classes.

    The network that the model is set to runs, without dropout.
    """
    shifted = predicts_next(model)
    device = next(model.parameters()).device
    total, targets = 0.0, 0
    with evaluating(model):
        for start in range(0, len(dataset), batch_size):
            rows = [dataset[index] for index in range(start, min(start + batch_size, len(dataset)))]
            batch = {name: value.to(device) for name, value in collator(rows).items()}
            labels = batch["labels"][..., 1:] if shifted else batch["labels"]
            count = int((labels != -100).sum())
            total += float(model(**batch).loss) * count if count else 0.0
            targets += count
    return total / max(targets, 1)


def predicts_next(model: Any) -> bool:
    """Return whether a model's loss compares each position with the label after it."""
    return getattr(model, "loss_function", None) is ForCausalLMLoss and not model.config.is_encoder_decoder
