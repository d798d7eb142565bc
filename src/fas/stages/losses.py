"""The losses by which a spiking network is aligned with its teacher."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def alignment(students: list[Tensor], teachers: list[Tensor]) -> Tensor:
    """Mean over layers of the squared error relative to the variance of the teacher.

    Args:
        students: output of every spiking layer [*B, C].
        teachers: the same of the teacher, no gradient.

    Returns:
        Scalar; 0 if equal, 1 if a layer knows no more than the teacher's mean.

    Source: FAS (arXiv 2502.04405), activation alignment. Deviation: relative, so that one weight serves
    layers of any scale.
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

    Source: Hinton et al. 2015 (arXiv 1503.02531) at temperature 1; FAS takes it per token.
    """
    log_student, log_teacher = student.float().log_softmax(-1), teacher.float().log_softmax(-1)
    tokens = functional.kl_div(log_student, log_teacher, log_target=True, reduction="none").sum(-1)
    return tokens.mean() if mask is None else tokens[mask.bool()].mean()
