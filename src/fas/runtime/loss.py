"""The loss of a model whose forward ran without labels."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional


def loss_from_output(model: Any, output: Any, labels: Tensor) -> Any:
    """Add the model's own loss, as transformers defines it for the kind of head.

    Args:
        model: a transformers model; ``loss_type`` names the kind of head.
        output: its output with ``logits``.
        labels: as its forward takes them.

    Returns:
        ``output`` with ``loss`` set.

    Raises:
        ValueError: for a head whose loss is not computed from logits and labels alone.
    """
    kind, logits = model.loss_type, output.logits
    if model.config.is_encoder_decoder and kind != "ForSequenceClassification":
        loss = functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100)
    elif kind in ("ForCausalLM", "ForMaskedLM"):
        loss = model.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1])
    elif kind in ("ForSequenceClassification", "ForImageClassification"):
        loss = _classification(model, logits, labels)
    else:
        raise ValueError(
            f"{type(model).__name__} has a loss of kind {kind!r}, which the online schedule does not compute; "
            "call the model without labels and take the loss of its logits"
        )
    values = {**dict(output.items()), "loss": loss}
    return type(output)(**values)


def _classification(model: Any, logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy, or mean squared error where the model regresses one value."""
    if logits.shape[-1] == 1 or model.config.problem_type == "regression":
        return functional.mse_loss(logits.squeeze(-1).float(), labels.float().view_as(logits.squeeze(-1)))
    if model.config.problem_type == "multi_label_classification":
        return functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
    return functional.cross_entropy(logits.float(), labels.flatten())
