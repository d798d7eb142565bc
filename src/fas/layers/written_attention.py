"""Attention that a module writes out itself: two products of activations around a softmax."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode

from fas.errors import FASError
from fas.layers.attention import AttentionOperands, collapsed, exponentials, share_of
from fas.layers.simulation import Simulation

_PRODUCTS = frozenset({"matmul", "__matmul__", "bmm", "baddbmm"})


@dataclass(frozen=True)
class Product:
    """One product of two activations as it was asked for.

    Attributes:
        left: [..., rows, inner].
        right: [..., inner, columns].
        dense: computes it.
        summed: what becomes of left · right: itself, or β · summand + α · left · right of ``baddbmm``.
    """

    left: Tensor
    right: Tensor
    dense: Callable[[], Tensor]
    summed: Callable[[Tensor], Tensor]


class ProductsAroundSoftmax(TorchFunctionMode):
    """Shows a subclass every product of two activations and every softmax while it is active.

    A product with a parameter, or with fewer than three dimensions, is that of a layer.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function, or what the subclass has in its place."""
        named = kwargs or {}
        name = getattr(function, "__name__", "")
        if name == "softmax":
            scores = args[0] if args else named["input"]
            dtype = named.get("dtype") or scores.dtype
            return self.softmax(scores, dtype, lambda: function(*args, **named))
        found = _product(name, function, args, named) if name in _PRODUCTS else None
        return function(*args, **named) if found is None else self.product(found)

    @abstractmethod
    def product(self, product: Product) -> Tensor:
        """Return the result of a product of two activations."""

    @abstractmethod
    def softmax(self, scores: Tensor, dtype: torch.dtype, dense: Callable[[], Tensor]) -> Tensor:
        """Return the result of a softmax over the last dimension, in a dtype."""


class SpikingProducts(ProductsAroundSoftmax):
    """Computes a written out attention from spikes, as ``spiking_attention`` does, while its module runs.

    The first product receives the coded query and keys, the softmax returns the coded weights over their sum, and the
    second product takes the coded weights themselves, the coded values, and the division after it. What the module
    does in between (scaling, position biases, masks, dropout) stays its own. In the dense network nothing changes.

    Args:
        operands: the populations; their widths say how many heads a batch of matrices [B · heads, rows, columns] has.

    Raises:
        FASError: a run that does not consist of product, softmax and product, as the traced one did.
    """

    def __init__(self, operands: AttentionOperands) -> None:
        super().__init__()
        self._operands = operands
        self._simulation: Simulation = operands.simulation
        self._scored = False
        self._share: Tensor | None = None
        self._heads: int | None = None
        self._done = 0

    def product(self, product: Product) -> Tensor:
        """Return scores from query and keys, and values weighed after a softmax."""
        return self._scores(product) if self._share is None else self._weighed(product, self._share)

    def softmax(self, scores: Tensor, dtype: torch.dtype, dense: Callable[[], Tensor]) -> Tensor:
        """Return the coded weights over their sum, whose softmax this is."""
        if not self._scored:
            return dense()
        self._scored, operands = False, self._operands
        self._heads = scores.shape[-3]
        split = self._by_head(scores)
        if self._simulation.network == "ann":
            operands.show(attention_weight=lambda: exponentials(split))
            self._share = scores.new_ones(())
            return dense()
        coded = collapsed(operands.weights(split))
        self._share = share_of(coded, gates=operands.gates)
        return (coded * self._share).view(scores.shape).to(dtype)

    def check(self) -> None:
        """Refuse a run that left attention to floats.

        Raises:
            FASError: such a run.
        """
        if not self._done or self._scored or self._share is not None:
            raise FASError(
                "attention that was traced as product, softmax and product ran differently this time, without "
                "spikes: use coverage 'linear', which leaves attention as it is"
            )

    def _scores(self, product: Product) -> Tensor:
        self._scored, operands = True, self._operands
        self._heads = operands.heads(product.left.shape[-1])
        if self._heads is None:
            return product.dense()
        query, key = self._by_head(product.left), self._by_head(product.right.transpose(-1, -2))
        if self._simulation.network == "ann":
            operands.show(query=lambda: query, key=lambda: key)
            return product.dense()
        spikes, keys = operands.encode("query", query), collapsed(operands.encode("key", key))
        found = collapsed(spikes @ keys.transpose(-1, -2))
        return product.summed(found.reshape(*product.left.shape[:-1], -1))

    def _weighed(self, product: Product, share: Tensor) -> Tensor:
        self._share, self._done, operands = None, self._done + 1, self._operands
        value = self._by_head(product.right)
        if self._simulation.network == "ann":
            operands.show(value=lambda: value)
            return product.dense()
        values = collapsed(operands.encode("value", value))
        # The counts again, less what dropout has taken from them.
        weights = self._by_head(product.left).to(share.dtype) / share
        found = (weights.to(values.dtype) @ values) * share.to(values.dtype)
        return product.summed(found.reshape(*product.left.shape[:-1], -1))

    def _by_head(self, x: Tensor) -> Tensor:
        """Return [B, heads, rows, columns]; matrices may come as [B · heads, rows, columns]."""
        return x if x.ndim == 4 else x.unflatten(0, (-1, self._heads or 1))


def _product(name: str, function: Any, args: Any, named: Any) -> Product | None:
    """Return a product of two activations, None of anything else."""
    if name == "baddbmm":
        given = [*args, *(named[key] for key in ("input", "batch1", "batch2")[len(args) :])]
        summand, left, right = given[:3]
        beta, alpha = named.get("beta", 1), named.get("alpha", 1)
    else:
        keys = ("input", "mat2" if name == "bmm" else "other")
        left, right = (*args, *(named[key] for key in keys[len(args) :]))[:2]
    if any(isinstance(x, Parameter) or x.ndim < 3 for x in (left, right)):
        return None
    return Product(
        left,
        right,
        lambda: function(*args, **named),
        (lambda found: beta * summand + alpha * found) if name == "baddbmm" else (lambda found: found),
    )
