"""Attention whose four factors are spikes: query, key, value and the attention weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fas.layers.gated import DIGITS, gated
from fas.layers.population import Population
from fas.layers.simulation import Simulation


class Operand(nn.Module):
    """One factor of a product in attention as a population of neurons.

    Query, key and value have a neuron per head and channel of it, the attention weights one per head.

    Args:
        population: its neurons.
        by_head: whether a head is one channel (attention weights).
    """

    def __init__(self, population: Population, *, by_head: bool) -> None:
        super().__init__()
        self.neuron = population
        self.by_head = by_head

    def forward(self, x: Tensor) -> Tensor:
        """Encode [B, heads, rows, columns] and return the same shape, stepped [T, B, heads, rows, columns]."""
        if self.by_head:
            return cast(Tensor, self.neuron(x.movedim(1, -1))).movedim(-1, -3)
        encoded: Tensor = self.neuron(x.transpose(1, 2).flatten(2))
        return encoded.unflatten(-1, (x.shape[1], x.shape[3])).transpose(-2, -3)


class AttentionOperands(nn.Module):
    """The factors of one attention module that spike, a child of the module under the name ``operands``.

    Args:
        populations: neurons by role; a factor without any stays as it is.
        softmax_gated: whether exponentials, reciprocals and the tanh of capped scores are gated populations.
    """

    def __init__(self, populations: Mapping[str, Population], *, softmax_gated: bool = False) -> None:
        super().__init__()
        self.softmax_gated = softmax_gated
        self.simulation: Simulation = next(iter(populations.values())).simulation
        for role, population in populations.items():
            if role == "attention_weight":
                # Exponentials lie above 0: trained below it, μ could take their sum to 0 or under.
                fixed = population.offset.detach()
                del population.offset
                population.register_buffer("offset", fixed)
            self.add_module(role, Operand(population, by_head=role == "attention_weight"))

    @property
    def gates(self) -> Simulation | None:
        """What evaluates gated functions, None where the exact ones are meant."""
        return self.simulation if self.softmax_gated else None

    def weights(self, scores: Tensor) -> Tensor:
        """Return the coded weights of scores [B, heads, queries, keys] before their division, also stepped."""
        hidden = hidden_keys(scores)
        coded = self.encode("attention_weight", exponentials(scores, gates=self.gates))
        operand = getattr(self, "attention_weight", None)
        if operand is not None and operand.neuron.active and self.simulation.observers:
            self.simulation.hide(operand.neuron.path, hidden)
        # Whatever training has made of v_0, a hidden key says nothing.
        return coded.masked_fill(hidden, 0)

    def encode(self, role: str, x: Tensor) -> Tensor:
        """Return a factor as the product receives it, [B, …] or stepped [T, B, …]."""
        operand = getattr(self, role, None)
        return x if operand is None else cast(Tensor, operand(x))

    def heads(self, width: int) -> int | None:
        """Return how many heads there are, of queries and keys of a width; None if no population tells."""
        for role, one in (("attention_weight", 1), ("query", width), ("key", width)):
            operand = getattr(self, role, None)
            if operand is not None:
                return int(operand.neuron.channels) // one
        return None

    def show(self, **factors: Callable[[], Tensor]) -> None:
        """Encode factors whose input somebody looks at (calibration), each made only then."""
        for role, make in factors.items():
            operand = getattr(self, role, None)
            if operand is not None and operand.neuron._forward_pre_hooks:
                operand(make())


def attention_scores(
    query: Tensor,
    key: Tensor,
    *,
    scaling: float,
    mask: Tensor | None = None,
    causal: bool = False,
    bias: Tensor | None = None,
    softcap: float | None = None,
    gates: Simulation | None = None,
) -> Tensor:
    """Return what the softmax receives, [B, heads, queries, keys].

    Args:
        query: [B, heads, queries, width], or per step [T, B, heads, queries, width], whose mean is meant.
        key: [B, key heads, keys, width].
        scaling: factor of the product.
        mask: [B or 1, heads or 1, queries, keys]: bool (True takes part) or a summand.
        causal: without a mask, whether query i sees keys 0…i only.
        bias: summand of T5's relative positions.
        softcap: c of c·tanh(x/c) before the mask (Gemma 2).
        gates: evaluates that function by a gated population; None computes it exactly.
    """
    scores = collapsed(query @ _repeated(key, query).transpose(-1, -2)) * scaling
    if softcap is not None:
        capped = scores / softcap
        scores = (torch.tanh(capped) if gates is None else gates.gated(gated("tanh"), capped)) * softcap
    if bias is not None:
        scores = scores + bias
    if mask is None and causal and scores.shape[-2] > 1:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is None:
        return scores
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores + mask


def spiking_attention(
    operands: AttentionOperands, query: Tensor, key: Tensor, value: Tensor, *, dropout: float = 0.0, **scoring: Any
) -> tuple[Tensor, Tensor]:
    """Attention on spikes: ê v̂ / Σ ê with e = exp(s − max s) and s = q̂ k̂ᵀ, where ^ is the code of a population.

    The weights are coded before they are divided by their sum: the largest of a query is 1 then, however
    many keys share its attention, and the coded weights of a query sum to one exactly. The division comes
    after the product with the values, one per query and head as in any softmax; with gated populations it is driven
    by the digits of the reciprocal.

    Keys and values are decoded once and kept; the spikes of a query then select keys to add, and those of
    a weight select values. They are encoded where they are read, so that a cache holds what the dense model
    would put there: encoding is by element and yields the same counts each time.

    Args:
        operands: the populations.
        query: [B, heads, queries, width].
        key: [B, key heads, keys, width]; heads share keys if there are fewer of them.
        value: [B, key heads, keys, width of the values].
        dropout: share of coded weights that are dropped, in training.
        scoring: scaling, mask, causal, bias and softcap of ``attention_scores``.

    Returns:
        [B, queries, heads, width of the values] and the coded weights [B, heads, queries, keys].
    """
    spikes = operands.encode("query", query)
    keys = collapsed(operands.encode("key", key))
    values = collapsed(operands.encode("value", value))
    scores = attention_scores(spikes, keys, gates=operands.gates, **scoring)
    coded = operands.weights(scores)
    share = share_of(collapsed(coded), gates=operands.gates)
    kept = functional.dropout(coded, p=dropout) if dropout else coded
    output = collapsed(kept.to(values.dtype) @ _repeated(values, scores)) * share.to(values.dtype)
    return output.transpose(1, 2).contiguous(), (collapsed(coded) * share).to(query.dtype)


def exponentials(scores: Tensor, *, gates: Simulation | None = None) -> Tensor:
    """Return exp(s − max s) over the last dimension, in float32 at least.

    What a mask hides is 0, all else above 0: calibration tells the two apart.
    """
    hidden = hidden_keys(scores)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    # A sum of −∞ masks has no difference to itself.
    below = scores - scores.amax(-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).min)
    found = below.exp() if gates is None else gates.gated(gated("exp"), below, hidden)
    return found.clamp_min(torch.finfo(found.dtype).tiny).masked_fill(hidden, 0)


def share_of(coded: Tensor, *, gates: Simulation | None = None) -> Tensor:
    """Return 1 over the sum of the coded weights of a query, [*B, 1] of [*B, keys]; by gates, in digits."""
    # Without any spike: a query to which a mask hides every key, a single step (operators "instant").
    total = coded.sum(-1, keepdim=True).clamp_min(torch.finfo(coded.dtype).tiny)
    return total.reciprocal() if gates is None else gates.gated(DIGITS, gates.gated(gated("reciprocal"), total))


def hidden_keys(scores: Tensor) -> Tensor:
    """Where a mask hides a key, bool of the same shape."""
    return scores <= torch.finfo(scores.dtype).min / 2


def collapsed(x: Tensor) -> Tensor:
    """The mean over the steps of a stepped tensor [T, B, …]."""
    return x.mean(0) if x.ndim == 5 else x


def _repeated(shared: Tensor, reader: Tensor) -> Tensor:
    """Repeat the heads of keys or values for the heads that share them."""
    times = reader.shape[-3] // shared.shape[-3]
    return shared if times == 1 else shared.repeat_interleave(times, dim=-3)
