"""The loss of a model whose forward ran without labels."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor
from torch.nn import functional
from transformers.loss.loss_utils import LOSS_MAPPING


def loss_from_output(model: Any, output: Any, labels: Tensor) -> Any:
    """Add the model's own loss, as transformers defines it for the kind of head.

    Returns:
        ``output`` with ``loss`` set.

    Raises:
        ValueError: for a head whose loss is not computed from logits and labels alone.
    """
    kind, logits = model.loss_type, output.logits
    # transformers finds the kind in the name of the class, and has none for GPT2LMHeadModel.
    if kind is None and type(model).__name__.endswith("LMHeadModel"):
        kind = "ForCausalLM"
    if model.config.is_encoder_decoder and kind != "ForSequenceClassification":
        loss = functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100)
    elif kind in ("ForCausalLM", "ForMaskedLM") or (kind == "ForConditionalGeneration" and _is_from_table(model)):
        # GIT answers at the patches of the image too, which stand in front of the text.
        logits = logits[:, -labels.shape[1] :].contiguous()
        loss = LOSS_MAPPING[kind](logits=logits, labels=labels, vocab_size=logits.shape[-1])
    elif kind in ("ForSequenceClassification", "ForImageClassification"):
        loss = _classification(model, logits, labels)
    else:
        raise ValueError(
            f"{type(model).__name__} has a loss of kind {kind!r}, which the online schedule does not compute; "
            "call the model without labels and take the loss of its logits"
        )
    values = {**dict(output.items()), "loss": loss}
    return type(output)(**values)


def _is_from_table(model: Any) -> bool:
    """Whether the class takes the loss of its kind from transformers, and does not compute one of its own."""
    return "loss_function" in inspect.unwrap(type(model).forward).__code__.co_names


def _classification(model: Any, logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy; mean squared error where the model regresses, binary cross entropy for several labels.

    Where the configuration leaves the kind open, it follows from labels as in transformers: one output
    regresses, and labels that are not whole numbers hold one probability for each class.
    """
    kind = model.config.problem_type
    if kind is None and logits.shape[-1] > 1 and labels.is_floating_point():
        kind = "multi_label_classification"
    if logits.shape[-1] == 1 or kind == "regression":
        return functional.mse_loss(logits.squeeze(-1).float(), labels.float().view_as(logits.squeeze(-1)))
    if kind == "multi_label_classification":
        return functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
    return functional.cross_entropy(logits.float(), labels.flatten())
