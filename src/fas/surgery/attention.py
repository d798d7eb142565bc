"""Spiking attention through transformers' own registry of attention functions: no class is copied."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fas.errors import FASError, SiteError
from fas.layers.attention import AttentionOperands, attention_scores, exponentials, spiking_attention
from fas.surgery.written_attention import Recorder, writes_attention

# Ours by what the model had: the dense network inside stays the one it was, to the bit.
_SPIKING = {"sdpa": "fas_sdpa", "eager": "fas_eager"}
_DENSE = {ours: theirs for theirs, ours in _SPIKING.items()}
SPIKING_ATTENTION = tuple(_DENSE)
"""Names of our attention functions in transformers."""
# Under this name a trace leaves its list on every module of the model that it runs.
_RECORD = "_fas_attention_calls"


@dataclass(frozen=True)
class AttentionCall:
    """One call of the attention function, or one attention that a module wrote out.

    Attributes:
        module: the module that called or wrote.
        query: shape [B, heads, queries, width]; likewise key and value.
        written: whether the module wrote it out, so that values are read after the weights.
    """

    module: nn.Module
    query: tuple[int, ...]
    key: tuple[int, ...]
    value: tuple[int, ...]
    written: bool = False


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    implementation: str,
    scaling: float | None = None,
    dropout: float = 0.0,
    **named: Any,
) -> tuple[Tensor, Tensor | None]:
    """What a model calls: the dense function it had, or the spiking one where the module has operands."""
    record = getattr(module, _RECORD, None)
    if record is not None:
        _refuse(module, named)
        record(AttentionCall(module, tuple(query.shape), tuple(key.shape), tuple(value.shape)))
    operands = getattr(module, "operands", None)
    dense = functools.partial(
        _dense(implementation, module),
        *(module, query, key, value, attention_mask),
        **{"scaling": scaling, "dropout": dropout, **named},
    )
    if not isinstance(operands, AttentionOperands):
        return dense()
    _refuse(module, named)
    is_causal = named.get("is_causal")
    how: dict[str, Any] = {
        "scaling": query.shape[-1] ** -0.5 if scaling is None else scaling,
        "mask": attention_mask,
        # As in transformers' function on PyTorch's fused attention; its eager ones always have a mask.
        "causal": implementation == "sdpa" and (getattr(module, "is_causal", True) if is_causal is None else is_causal),
        "bias": named.get("position_bias"),
        "softcap": named.get("softcap"),
    }
    if operands.simulation.network != "ann":
        return spiking_attention(operands, query, key, value, **how, dropout=dropout if module.training else 0.0)
    # The fused function does not show its weights.
    weights = functools.partial(attention_scores, query, key, **how)
    operands.show(
        query=lambda: query, key=lambda: key, value=lambda: value, attention_weight=lambda: exponentials(weights())
    )
    return dense()


@functools.cache
def register_attention() -> None:
    """Make our functions, and the masks that they want, known to transformers."""
    # Not at the top: transformers imports this module while it is half imported itself.
    from transformers.masking_utils import AttentionMaskInterface, eager_mask, sdpa_mask
    from transformers.modeling_utils import AttentionInterface

    for theirs, mask in (("sdpa", sdpa_mask), ("eager", eager_mask)):
        AttentionInterface.register(_SPIKING[theirs], functools.partial(_attention, implementation=theirs))
        AttentionMaskInterface.register(_SPIKING[theirs], mask)


def _dense(implementation: str, module: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
    if implementation == "sdpa":
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        function: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS["sdpa"]
        return function
    # Each modeling file has an eager function of its own.
    found = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if found is None:
        raise SiteError(
            f"{type(module).__name__} is set to attention 'eager' but {type(module).__module__} has no "
            "eager_attention_forward: load the model with attn_implementation='sdpa'"
        )
    return found


def _refuse(module: nn.Module, named: dict[str, Any]) -> None:
    """Refuse what the spiking function does not compute."""
    for argument, what in (("s_aux", "attention sinks"), ("cache", "a paged cache (continuous batching)")):
        if named.get(argument) is not None:
            raise FASError(
                f"{type(module).__name__} uses {what}, which spiking attention does not support: "
                "use coverage 'linear', which leaves attention as it is"
            )


def is_spiking_attention(model: Any) -> bool:
    """Whether a model, or a part of it, is set to our attention functions."""
    return any(part.config._attn_implementation in _DENSE for part in _asking(model))


def _asking(model: nn.Module) -> list[Any]:
    """Return the parts whose attention function can be set, from the outermost to the innermost."""
    from transformers.modeling_utils import PreTrainedModel

    return [m for m in model.modules() if isinstance(m, PreTrainedModel) and m._can_set_attn_implementation()]


def use_spiking_attention(model: Any) -> None:
    """Let a transformers model call our attention function, which is the dense one until operands are there.

    Parts whose attention cannot be set write it out themselves and stay as they are.

    Raises:
        SiteError: not a transformers model, or one set to another function than ``sdpa`` and ``eager``.
    """
    from transformers.modeling_utils import PreTrainedModel

    name = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        raise SiteError(f"coverage 'full' needs a transformers model, whose attention can be exchanged; got {name}")
    for part in _asking(model):
        present = part.config._attn_implementation
        if present in _DENSE:
            continue
        if present not in _SPIKING:
            raise SiteError(
                f"{type(part).__name__} is set to attention {present!r}, which spikes cannot replace: load "
                f"it with attn_implementation={' or '.join(repr(known) for known in _SPIKING)}"
            )
        register_attention()
        part.set_attn_implementation(_SPIKING[present])


def use_dense_attention(model: Any) -> None:
    """Undo ``use_spiking_attention``."""
    for part in _asking(model):
        if part.config._attn_implementation in _DENSE:
            part.set_attn_implementation(_DENSE[part.config._attn_implementation])


def is_attention_class(module: nn.Module) -> bool:
    """Whether a module is called attention by the name of its class."""
    return "attention" in type(module).__name__.lower()


@contextmanager
def recording_attention(model: nn.Module, record: Callable[[AttentionCall], None]) -> Iterator[None]:
    """Report every call of the attention function, and every attention that a module writes out, in the block.

    Modules that are none of transformers have neither.

    Raises:
        SiteError: see ``use_spiking_attention``; a module that asks for an attention function in a way that its code
            does not show, or whose own attention has more than two products.
    """
    from transformers.modeling_utils import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        yield
        return

    def written(module: nn.Module, query: torch.Size, key: torch.Size, value: torch.Size) -> None:
        record(AttentionCall(module, tuple(query), tuple(key), tuple(value), written=True))

    recorder = Recorder(written)

    def keep(call: AttentionCall) -> None:
        if writes_attention(call.module):
            raise SiteError(
                f"{type(call.module).__name__} gets its attention function from elsewhere, so how it computes "
                "attention is unknown: use coverage 'linear'"
            )
        recorder.asked(call.module)
        record(call)

    before = is_spiking_attention(model)
    use_spiking_attention(model)
    modules = list(model.modules())
    for module in modules:
        object.__setattr__(module, _RECORD, keep)
    try:
        with recorder.following(model), recorder:
            yield
    finally:
        for module in modules:
            object.__delattr__(module, _RECORD)
        if not before:
            use_dense_attention(model)
