"""A model ready to be timed: its settings, and its two kinds of pass."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import StaticCache


@dataclass(frozen=True)
class Contender:
    """One language model with the settings under which it takes part.

    Attributes:
        name: of the subject.
        model: takes ``input_ids``, ``past_key_values``, ``use_cache`` and ``logits_to_keep`` by name.
        settings: attributes that are set before every call: several subjects may share a model.
        cached: whether it keeps keys and values between tokens.
        compiled: whether a decoding step is one compiled graph, with a cache of fixed size; a prompt is read as it is.
        about: what must be said beside its figures.
    """

    name: str
    model: Any
    settings: Mapping[str, Any] = field(default_factory=dict)
    cached: bool = True
    compiled: bool = False
    about: Mapping[str, Any] = field(default_factory=dict)

    def ready(self) -> None:
        """Apply the settings."""
        for name, value in self.settings.items():
            setattr(self.model, name, value)

    def prefill(self, ids: Tensor) -> Callable[[], Any]:
        """Return the pass over a prompt, up to the logits of its last position.

        Args:
            ids: tokens [B, S].
        """
        self.ready()
        return lambda: self.model(input_ids=ids, use_cache=self.cached, logits_to_keep=1)

    def decode(self, ids: Tensor, new: int) -> Decoding:
        """Return greedy decoding behind a prompt.

        Args:
            ids: the prompt [B, S].
            new: tokens to decode.
        """
        return Decoding(self, ids, new)


class Decoding:
    """Greedy decoding behind a prompt, one token at a time; its call makes one run ready.

    With a cache, the prompt is read once, untimed, and each run starts from a copy of its cache. Without, a token
    costs a pass over all tokens so far; one pass over as many as there are half-way stands for the mean.

    Attributes:
        tokens: tokens that a run decodes, per sequence.
    """

    def __init__(self, contender: Contender, ids: Tensor, new: int) -> None:
        self._contender = contender
        self.tokens = new if contender.cached else 1
        if not contender.cached:
            extended = [ids, ids[:, :1].expand(-1, new // 2)]
            self._ids = torch.cat(extended, dim=1)
            return
        model, cache = contender.model, None
        if contender.compiled:
            cache = StaticCache(config=model.config, max_cache_len=ids.shape[1] + new)
        contender.ready()
        with torch.inference_mode():
            answer = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        self._cache = answer.past_key_values
        self._first = answer.logits[:, -1].argmax(-1, keepdim=True)
        self._step = model
        if contender.compiled:
            self._step = torch.compile(model.forward, fullgraph=True)
            with torch.inference_mode():
                # It compiles in its first call, which is no part of what is timed.
                self()()

    def __call__(self) -> Callable[[], Any]:
        """Make one run ready and return it."""
        if not self._contender.cached:
            return self._contender.prefill(self._ids)
        self._contender.ready()
        cache = copy.deepcopy(self._cache)
        return lambda: self._run(cache)

    def _run(self, cache: Any) -> Tensor:
        token = self._first
        for _ in range(self.tokens):
            answer = self._step(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = answer.past_key_values
            token = answer.logits[:, -1].argmax(-1, keepdim=True)
        return token
