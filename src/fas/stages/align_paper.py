"""The losses of the FAS paper as its released code has them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from fas.stages.align import Align
from fas.surgery.replace import populations
from fas.training.losses import divergence, predicts_next


@dataclass(frozen=True)
class AlignPaper(Align):
    """Minimise Σ over sites of the MSE of what neurons send + λ · KL, summed over tokens and averaged over rows.

    The KL leaves out the last position, which predicts nothing, and has no weight in models that do not write text
    (the code's BERT). All else is as in ``Align``; the code keeps what it ends with and holds no batches out.

    Source: FAS (arXiv 2502.04405), its released code: ``MSELoss`` of every neuron's mean output against the quantised
    activation, ``KLDivLoss(reduction="batchmean")`` of logits [B, S − 1, V]. Deviation: the KL skips masked positions.
    """

    def watched(self, model: Any) -> Iterable[nn.Module]:
        """Return the neurons of every site."""
        return populations(model).values()

    def objective(
        self, model: Any, students: list[Tensor], targets: list[Tensor], logits: Tensor, target: Tensor, mask: Any
    ) -> Tensor:
        """Return the loss of one batch."""
        total = sum((functional.mse_loss(s, t) for s, t in zip(students, targets, strict=True)), logits.new_zeros(()))
        if not predicts_next(model):
            return total
        counted = None if mask is None else mask[:, :-1]
        tokens = logits[:, :-1, 0].numel() if counted is None else int(counted.sum())
        return total + self.weight * divergence(logits[:, :-1], target[:, :-1], counted) * tokens / len(logits)
