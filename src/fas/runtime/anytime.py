"""Anytime inference: a token's time steps end as soon as its answer is clear."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from fas.runtime.spiking import SpikingModel


class Anytime:
    """A decoding loop for ``generate`` that runs one time step at a time and stops early.

    After step t the network has an answer. If the best logit leads the second by ``margin`` for every
    unfinished sequence of the batch, the later steps of this token are not run; keys and values that they would
    have added are held at those of step t. Membrane potentials last from step to step, so that with an infinite
    margin the result is that of the online schedule with all T steps.

    Args:
        margin: lead in logits, at least 0.

    Attributes:
        steps: time steps of every forward so far, the prompt's first.

    Raises:
        ValueError: a negative margin; a model that is not spiking online, or an encoder-decoder; images.

    Example:
        >>> model.schedule = "online"  # doctest: +SKIP
        >>> anytime = Anytime(margin=2.0)  # doctest: +SKIP
        >>> model.generate(**inputs, custom_generate=anytime)  # doctest: +SKIP
        >>> anytime.mean_steps  # doctest: +SKIP
        3.4
    """

    def __init__(self, margin: float) -> None:
        if not margin >= 0:
            raise ValueError(f"margin is {margin}; expected a lead in logits of at least 0")
        self.margin = margin
        self.steps: list[int] = []

    @property
    def mean_steps(self) -> float:
        """Mean time steps per forward."""
        return sum(self.steps) / max(1, len(self.steps))

    @torch.no_grad()
    def __call__(self, model: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Decode as transformers' sampling loop does; the arguments are those of ``custom_generate``."""
        _check(model)
        with model.simulation.alone():
            return self._decode(model, *args, **kwargs)

    def _decode(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        synced_gpus: bool = False,
        streamer: Any = None,
        **model_kwargs: Any,
    ) -> Tensor:
        images = sorted(name for name in model_kwargs if name.startswith("pixel_"))
        if images:
            raise ValueError(f"early exit reads text alone, and got {', '.join(images)}; generate without it")
        caches = [DynamicCache(config=model.config) for _ in range(model.timesteps)]
        mask = model_kwargs.get("attention_mask")
        mask = torch.ones_like(input_ids) if mask is None else mask
        positions = model_kwargs.get("position_ids")
        fresh = input_ids.shape[1]
        running = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
        while bool(running.any()):
            logits = self._answer(model, input_ids, mask, positions, caches, fresh, running)
            scores = logits_processor(input_ids, logits.float())
            if generation_config.do_sample:
                token = torch.multinomial(scores.softmax(-1), 1).squeeze(1)
            else:
                token = scores.argmax(-1)
            pad = generation_config.pad_token_id
            token = torch.where(running, token, 0 if pad is None else pad)
            input_ids = torch.cat([input_ids, token.unsqueeze(1)], dim=1)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            if positions is not None:
                positions = torch.cat([positions, positions[:, -1:] + 1], dim=1)
            if streamer is not None:
                streamer.put(token.cpu())
            running = running & ~stopping_criteria(input_ids, None)
            fresh = 1
        if streamer is not None:
            streamer.end()
        return input_ids

    def _answer(
        self, model: Any, ids: Tensor, mask: Tensor, positions: Tensor | None, caches: list[Any], fresh: int,
        running: Tensor,
    ) -> Tensor:  # fmt: skip
        """Return the logits of the last position after as many steps as it takes."""
        total = torch.zeros(())
        model.reset()
        try:
            for t in range(1, model.timesteps + 1):
                # transformers slices to what is new.
                inputs = model.prepare_inputs_for_generation(
                    ids, next_sequence_length=fresh, past_key_values=caches[t - 1], attention_mask=mask,
                    position_ids=positions, use_cache=True, is_first_iteration=fresh > 1,
                )  # fmt: skip
                with model.simulation.running(range(t, t + 1), carry=True):
                    logits = model(**inputs).logits[:, -1]
                if model.operators == "instant":
                    total = total + logits
                    logits = total / t
                best = logits[running].topk(2, dim=-1).values
                if bool((best[:, 0] - best[:, 1] >= self.margin).all()):
                    break
        finally:
            model.reset()
        for later in range(t, len(caches)):
            caches[later] = _held(caches[later], caches[t - 1], fresh)
        self.steps.append(t)
        return logits


def _held(cache: Any, source: Any, fresh: int) -> Any:
    """Return a cache that continues with what another one has just added."""
    if cache.get_seq_length() == 0:
        return copy.deepcopy(source)
    for index, layer in enumerate(source.layers):
        cache.update(layer.keys[..., -fresh:, :], layer.values[..., -fresh:, :], index)
    return cache


def _check(model: Any) -> None:
    if not isinstance(model, SpikingModel) or not model.simulation.folds:
        raise ValueError("early exit needs a spiking model in the online schedule: set model.schedule = 'online'")
    if model.config.is_encoder_decoder:
        raise ValueError("early exit is not defined for encoder-decoder models; generate without it")
