"""Perplexity of a causal language model on a stream of tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fas.errors import DataError
from fas.storage.resume import Once, directly
from fas.surgery.probe import evaluating
from fas.types import Progress

DEFAULT_WINDOW = 1024
# math.exp overflows above the logarithm of the largest float64.
LARGEST_EXPONENT = 709.0


@dataclass(frozen=True)
class Perplexity:
    """Perplexity with the conditions it depends on.

    Attributes:
        value: exp(nll_per_token), per token; infinite where float64 overflows, NaN where the model gives NaN.
        nll_per_token: mean negative log likelihood, nats per scored token.
        tokens: tokens scored.
        window: tokens that the model sees at once, BOS included (fewer where the text is shorter).
        stride: tokens from one window's begin to the next.
        bos: whether every window begins with the token that the tokenizer puts in front of a text.
        windows: negative log likelihood and scored tokens of every window.
    """

    value: float
    nll_per_token: float
    tokens: int
    window: int
    stride: int
    bos: bool = False
    windows: tuple[tuple[float, int], ...] = field(default=(), repr=False, compare=False)

    @property
    def conditions(self) -> dict[str, Any]:
        """What must be said beside the value, so that it can be measured again."""
        return {
            "window": self.window, "stride": self.stride, "bos": self.bos, "scored_tokens": self.tokens,
            "nll_per_token": self.nll_per_token,
        }  # fmt: skip


def perplexity(
    model: nn.Module,
    tokens: Tensor,
    *,
    window: int | None = None,
    stride: int | None = None,
    bos: int | None = None,
    batch_size: int = 8,
    progress: Progress | None = None,
    once: Once = directly,
) -> Perplexity:
    """Measure exp(-1/N sum_i log p(x_i | the tokens before x_i in its window)).

    The strided sliding window of the Hugging Face page "Perplexity of fixed-length models": the
    first window scores all but its first token, each later one only the tokens that no window
    before it held. With ``stride == window`` the first token of every window has no context and is
    not scored. With ``bos`` every window begins with this token, not scored either, so the first token has a context.

    Deviation: the page counts one token too few per window where windows overlap (it weights every
    window by its labels minus one); here each scored token has the same weight.

    Args:
        model: a causal language model, called as ``model(input_ids=int64 [B, L]).logits`` giving
            [B, L, vocabulary]. It runs in evaluation mode without gradients, its mode is restored.
        tokens: int64 [N], N >= 2, on any device.
        window: tokens per window; None takes the model's context length, 1024 if it states none.
        stride: tokens between windows, 1 to ``window``; None takes ``window // 2``. A window that ``bos`` is put in
            front of holds ``window - 1`` tokens of the text, which is then the longest stride.
        bos: first token of every window (``fas.data.text.leading_token`` finds the tokenizer's); None adds none.
        batch_size: windows of equal length per call.
        progress: called with what is done, windows done and in all, after each call of the model.
        once: does every call, or returns what an earlier run has found (see ``fas.storage.resume``).

    Raises:
        DataError: fewer than two tokens, or an id outside the model's vocabulary.
        ValueError: a model that is not causal, or window, stride, batch_size, tokens out of range.
    """
    _require_causal(model)
    config = _text_config(model)
    _check_tokens(tokens, getattr(config, "vocab_size", None))
    window, stride = _geometry(config, window, stride, bos)
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: expected at least 1 window per call")
    spans = _spans(tokens, window, stride, bos)
    device = next((parameter.device for parameter in model.parameters()), tokens.device)
    seen, done = list[tuple[float, int]](), 0
    with evaluating(model):
        for batch in _equal_lengths(spans, batch_size):
            key = f"windows {done} to {done + len(batch)}"
            seen += once(key, partial(_scored, model, tokens, batch, bos, device))
            done += len(batch)
            if progress is not None:
                progress("scoring windows", done, len(spans))
    scored = sum(count for _, count in seen)
    mean = sum(nll for nll, _ in seen) / scored
    value = math.inf if mean > LARGEST_EXPONENT else math.exp(mean)
    return Perplexity(value, mean, scored, window, stride, bos is not None, tuple(seen))


@dataclass(frozen=True)
class _Span:
    begin: int
    end: int
    first: int  # place in the text of the first token that is scored
    led: bool  # whether BOS is put in front

    def __len__(self) -> int:
        return self.end - self.begin + self.led


def _scored(
    model: nn.Module, tokens: Tensor, batch: list[_Span], bos: int | None, device: torch.device
) -> list[tuple[float, int]]:
    """Return negative log likelihood (nats) and scored tokens of each window of one call."""
    front = tokens.new_tensor([] if bos is None else [bos])
    rows = torch.stack([torch.cat([front[: s.led], tokens[s.begin : s.end]]) for s in batch]).to(device)
    logits = model(input_ids=rows).logits
    if logits.shape[:-1] != rows.shape:
        raise ValueError(
            f"{type(model).__name__} gives logits {list(logits.shape)} for input_ids "
            f"{list(rows.shape)}: expected [B, L, vocabulary], load it as a causal language model"
        )
    found = []
    for row, scores, span in zip(rows, logits, batch, strict=True):
        first = span.first - span.begin + span.led
        # Row by row: float32 logits of a whole batch would double the peak memory.
        nll = cross_entropy(scores[first - 1 : -1].float(), row[first:], reduction="none")
        if bos is not None:
            # A document's own BOS: the model does not write it.
            nll = nll[row[first:] != bos]
        found.append((float(nll.double().sum()), len(nll)))
    return found


def _spans(tokens: Tensor, window: int, stride: int, bos: int | None) -> list[_Span]:
    length = len(tokens)
    starts = [True] * length if bos is None else (tokens == bos).tolist()
    spans: list[_Span] = []
    begin, seen = 0, 0
    while seen < length:
        led = not starts[begin]
        end = min(begin + window - led, length)
        first = max(seen, begin + 1 - led)
        if first < end:
            spans.append(_Span(begin, end, first, led))
        begin, seen = begin + stride, end
    return spans


def _equal_lengths(spans: list[_Span], batch_size: int) -> Iterator[list[_Span]]:
    for _, group in groupby(spans, key=len):
        while batch := list(islice(group, batch_size)):
            yield batch


def _text_config(model: nn.Module) -> Any:
    config = getattr(model, "config", None)
    text_config = getattr(config, "get_text_config", None)
    return config if text_config is None else text_config(decoder=True)


def _geometry(config: Any, window: int | None, stride: int | None, bos: int | None) -> tuple[int, int]:
    context = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if window is None:
        window = context or DEFAULT_WINDOW
    if window < 2:
        raise ValueError(f"window is {window}: expected at least 2 tokens, one of them as context")
    if context is not None and window > context:
        raise ValueError(f"window is {window}, the model's context holds {context} tokens: pass window={context}")
    if stride is None:
        stride = window // 2
    if not 1 <= stride <= window:
        raise ValueError(f"stride is {stride}: expected 1 to the window of {window} tokens, so that none is skipped")
    return window, stride if bos is None else min(stride, window - 1)


def _check_tokens(tokens: Tensor, vocab_size: int | None) -> None:
    if tokens.ndim != 1 or tokens.dtype != torch.int64:
        raise ValueError(f"tokens is {tokens.dtype} {list(tokens.shape)}: expected one stream, int64 [N]")
    if len(tokens) < 2:
        raise DataError(f"the text has {len(tokens)} tokens, perplexity needs at least 2: give more text")
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or (vocab_size is not None and high >= vocab_size):
        wrong = low if low < 0 else high
        raise DataError(
            f"token id {wrong} is outside the model's vocabulary of {vocab_size}: "
            "tokenise with the tokenizer saved with this model"
        )


def _require_causal(model: nn.Module) -> None:
    from transformers.models.auto import modeling_auto

    masked = modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    causal = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    config = getattr(model, "config", None)
    name = type(model).__name__
    family = getattr(config, "model_type", None)
    # Families in both lists (BERT, RoBERTa) attend in both directions unless told to decode.
    both = family in masked and family in causal and not getattr(config, "is_decoder", False)
    if getattr(config, "is_encoder_decoder", False):
        remedy = "an encoder-decoder has no perplexity of a text alone; take a decoder-only model"
    elif both or (name in masked.values() and name not in causal.values()):
        remedy = (
            "a masked model sees the token it should predict, and pseudo-perplexity is not defined here; "
            "take a causal language model, or evaluate this one with classify"
        )
    else:
        return
    raise ValueError(f"{name} is not a causal language model: {remedy}")
