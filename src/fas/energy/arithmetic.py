"""What stays ordinary arithmetic in a network: products, gates and non-linear functions, as they are executed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode

from fas.energy.operands import Operands, Scores
from fas.energy.operations import Operations

# No score of a trained model is as low; masks are, in half precision too.
_MASKED = -3e4
# Their arguments by name, the factors last.
_PRODUCTS = {
    "linear": ("input", "weight"), "addmm": ("input", "mat1", "mat2"), "addmv": ("input", "mat", "vec"),
    "baddbmm": ("input", "batch1", "batch2"), "mm": ("input", "mat2"), "mv": ("input", "vec"), "bmm": ("input", "mat2"),
    "matmul": ("input", "other"), "__matmul__": ("self", "other"), "__rmatmul__": ("self", "other"),
}  # fmt: skip
# nn.MultiheadAttention: projections with packed weights and attention in one call, which returns a tuple.
_PACKED = frozenset({"multi_head_attention_forward", "_native_multi_head_attention"})
_CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d"})
_MULTIPLICATIONS = frozenset({"mul", "mul_", "__mul__", "__imul__"})
_ADDITIONS = frozenset({"add", "add_", "__add__", "__iadd__"})
_EVALUATED = frozenset({"gelu", "silu", "tanh", "sigmoid", "softplus", "elu"})
# Products that would go unnoticed otherwise.
_UNKNOWN = frozenset({"einsum", "bilinear", "tensordot", "conv_transpose1d", "conv_transpose2d", "vmap"})
# Of rows sorted by expert, with the weights of all experts.
_GROUPED = frozenset({"grouped_mm", "_grouped_mm", "grouped_mm_fallback"})


@dataclass
class _Product:
    place: str
    size: int
    inner: int
    words: int
    counted: bool


@dataclass
class Digits:
    """What a gated population has sent digit by digit, for a product that they may drive.

    Attributes:
        values: that they stand for.
        spikes: of all of them.
        found: the entry of the population.
    """

    values: Tensor
    spikes: int
    found: Operations

    def drive(self, products: int) -> None:
        """Count a product: every spike adds the other factor to each result, in place of the value itself.

        A second product with the same values is none of the network's: attention returns its weights.
        """
        self.found.shift_additions += round(self.spikes * (products / self.values.numel() - 1))
        self.spikes = 0


class Arithmetic(TorchFunctionMode):
    """Counts operations on floats while it is active, under the name of the module that runs.

    Pairs of query and key that the mask forbids are left out, whichever attention function computes them: in
    ``scaled_dot_product_attention`` by its mask, in an explicit product by the scores that the softmax
    receives. Not counted: scaling by a number and biases (both fold into weights), masks and position biases,
    sums over steps, angles of rotary embeddings.

    Attributes:
        place: dotted name of the module that runs.
        opaque: above zero, nothing is counted: whoever raised it counts for itself.
        uncounted: products that this class does not know, by name and number of calls.
        digits: sent last by a gated population.
    """

    def __init__(self, at: Callable[[str], Operations], operands: Operands) -> None:
        super().__init__()
        self.place, self.opaque = "", 0
        self.uncounted: dict[str, int] = {}
        self.digits: Digits | None = None
        self._at, self._operands = at, operands
        self._scores: Scores | None = None
        self._product: _Product | None = None

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function and count it."""
        named = kwargs or {}
        result = function(*args, **named)
        name = getattr(function, "__name__", "")
        if name in _PACKED and not self.opaque:
            query, key, value, _, heads = args[:5]
            self._attend_packed(query, key, value, heads, keys=key.shape[0 if name.startswith("m") else 1])
        if self.digits is not None and name in _MULTIPLICATIONS and any(x is self.digits.values for x in args[:2]):
            self.digits.drive(result.numel())
            return result
        if self.opaque or not isinstance(result, Tensor) or not result.is_floating_point():
            return result
        if name in _PRODUCTS:
            self._multiply(*_factors(name, args, named), result)
        elif name == "scaled_dot_product_attention":
            self._attend(*_named(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), args, named))
        elif name in ("softmax", "amax"):
            (scores,) = _named(("input",), args, named)
            self._softmax(scores, fused=name == "softmax")
        elif name in _CONVOLUTIONS:
            self._convolve(function, args, named, result.numel())
        elif name in _GROUPED:
            _, right, ends = _named(("input", "mat_b", "offs"), args, named)
            rows, used = int(ends[-1]), int(ends.diff(prepend=ends.new_zeros(1)).count_nonzero())
            self._count(rows * right[0].numel(), used * right[0].numel(), result.numel())
        elif name in _UNKNOWN:
            self.uncounted[name] = self.uncounted.get(name, 0) + 1
        elif self._scores is not None and self._scores.place == self.place:
            # Between scores and values: parts of the softmax, which is counted as a whole.
            return result
        elif name == "exp":
            self._at(self.place).exponentials += result.numel()
        elif name in _EVALUATED:
            self._at(self.place).activations += result.numel()
        elif name in _MULTIPLICATIONS and _both_tensors(args):
            self._at(self.place).multiplications += result.numel()
        elif name in _ADDITIONS and _both_tensors(args) and not self._is_mask(result):
            self._at(self.place).float_additions += result.numel()
        return result

    def _count(self, number: int, words: int, outputs: int) -> None:
        found = self._at(self.place)
        found.multiply_adds += number
        found.weight_words += number
        found.weight_words_time += number
        found.weight_words_pass += words
        found.outputs += outputs

    def _normalise(self, pairs: int, rows: int, *, fused: bool = True) -> None:
        found = self._at(self.place)
        found.exponentials += pairs
        found.divisions += rows
        found.multiplications += pairs * fused

    def _convolve(self, function: Any, args: Any, named: Any, outputs: int) -> None:
        """Count a convolution; what padding adds is not multiplied."""
        names = ("input", "weight", "bias", "stride", "padding", "dilation")
        x, weight, _, *where = _named(names, args, named)
        given = {name: value for name, value in zip(names[3:], where, strict=True) if value is not None}
        inside = function(torch.ones_like(x[:1, :1]), torch.ones_like(weight[:1, :1]), **given)
        self._count(len(x) * int(inside.sum()) * weight.shape[:2].numel(), weight.numel(), outputs)

    def _attend_packed(self, query: Tensor, key: Tensor, value: Tensor, heads: int, *, keys: int) -> None:
        """Count attention with its projections; pairs that a mask forbids are not left out."""
        width = query.shape[-1]
        pairs = query.numel() // width * heads * keys
        projected = 2 * query.numel() + key.numel() + value.numel()
        self._count(projected * width, 4 * width * width, projected)
        self._count(2 * pairs * (width // heads), key.numel() + value.numel(), pairs + query.numel())
        self._normalise(pairs, pairs // keys)

    def _multiply(self, left: Tensor, right: Tensor, result: Tensor) -> None:
        inner = left.shape[-1]
        number = result.numel() * inner
        if left.ndim < 3 or right.ndim < 3 or isinstance(right, Parameter):
            self._count(number, right.numel(), result.numel())
            return
        scores = self._scores
        if scores is not None and scores.place == self.place and left.numel() % scores.size == 0:
            # Weights of attention times values.
            self._scores = None
            width = result.shape[-1]
            if self._operands.driven(self.place, "values"):
                self._operands.valued(self.place, width, right.numel())
            else:
                self._count(scores.pairs * width, right.numel(), result.numel())
            return
        counted = not self._operands.driven(self.place, "scores")
        if counted:
            self._count(number, right.numel(), result.numel())
        self._product = _Product(self.place, result.numel(), inner, right.numel(), counted)

    def _softmax(self, values: Tensor, *, fused: bool) -> None:
        """Count a softmax: transformers' own, or the one of spiking attention, which begins by a maximum.

        The latter divides after the product with the values, where the multiplications are seen.
        """
        product = self._product
        attends = product is not None and product.place == self.place and product.size % max(1, values.numel()) == 0
        if not (fused or attends):
            return
        self._product = None
        visible = (values > _MASKED).sum(-1)
        scores = Scores(self.place, values.numel(), visible)
        if not self._operands.gated(self.place):
            self._normalise(scores.pairs, visible.numel(), fused=fused)
        if product is None or not attends:
            return
        self._scores = scores
        if product.counted:
            hidden = product.size - scores.pairs
            self._count(-hidden * product.inner, 0, -hidden)
        else:
            self._operands.scored(scores, product.words)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Any, _: Any, causal: Any) -> None:
        rows, keys = query.shape[:-1], key.shape[-2]
        if isinstance(mask, Tensor):
            allowed = mask if mask.dtype == torch.bool else mask > _MASKED
            pairs = int(allowed.expand(*rows, keys).sum())
        elif causal:
            # Aligned at the first key, as PyTorch defines it.
            pairs = query.shape[:-2].numel() * sum(min(i + 1, keys) for i in range(rows[-1]))
        else:
            pairs = rows.numel() * keys
        outputs = pairs + rows.numel() * value.shape[-1]
        self._count(pairs * (query.shape[-1] + value.shape[-1]), key.numel() + value.numel(), outputs)
        self._normalise(pairs, rows.numel())

    def _is_mask(self, result: Tensor) -> bool:
        """Whether an addition puts a mask or a position bias on scores."""
        product = self._product
        return product is not None and product.place == self.place and product.size == result.numel()


def _factors(name: str, args: Any, named: Any) -> tuple[Tensor, Tensor]:
    *_, left, right = _named(_PRODUCTS[name], args, named)
    return (right, left) if name == "__rmatmul__" else (left, right)


def _named(names: tuple[str, ...], args: Any, named: Any) -> list[Any]:
    return [args[i] if i < len(args) else named.get(name) for i, name in enumerate(names)]


def _both_tensors(args: Any) -> bool:
    return len(args) > 1 and all(isinstance(x, Tensor) and x.ndim > 0 and x.is_floating_point() for x in args[:2])
