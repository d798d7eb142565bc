"""Finding attention that a module writes out itself, and letting its products run on spikes: no class is copied."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fas.errors import SiteError
from fas.layers.attention import AttentionOperands
from fas.layers.written_attention import Product, ProductsAroundSoftmax, SpikingProducts
from fas.surgery.probe import hooked

# What every forward that asks transformers for an attention function names.
_INTERFACE = "ALL_ATTENTION_FUNCTIONS"
# What comes next in the method resolution order is the module's own class.
_Parent: Any = object


def writes_attention(module: nn.Module) -> bool:
    """Whether a module's forward asks for no attention function, so that attention in it can only be written out."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return code is None or _INTERFACE not in code.co_names


class _Written(_Parent):
    operands: AttentionOperands

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module as its own class does, with spikes in its products."""
        with SpikingProducts(self.operands) as products:
            output = super().forward(*args, **kwargs)
        products.check()
        return output


def use_spiking_products(module: nn.Module) -> None:
    """Let the products of a module that writes out its attention run on the spikes of its ``operands``, in place."""
    if not isinstance(module, _Written):
        base: Any = type(module)
        module.__class__ = class_with(_Written, base)


def use_dense_products(module: nn.Module) -> None:
    """Undo ``use_spiking_products``."""
    if isinstance(module, _Written):
        module.__class__ = class_without(type(module))


@functools.cache
def class_with(mixin: Any, base: Any) -> Any:
    """Return ``base`` with the abilities of ``mixin``, under the same name; objects of it can be pickled.

    The name matters: transformers writes it into config.json, and finds modules and the loss by it.
    """

    @functools.wraps(base.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return mixin.forward(self, *args, **kwargs)

    def reduce(self: Any, protocol: Any) -> Any:
        return _new, (mixin, base), *base.__reduce_ex__(self, protocol)[2:]

    names = {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(base.__name__, (mixin, base), {"forward": forward, "__reduce_ex__": reduce, **names})


def _new(mixin: Any, base: Any) -> Any:
    cls = class_with(mixin, base)
    return cls.__new__(cls)


def class_without(mixed: Any) -> Any:
    """Return the base of a class that ``class_with`` has made."""
    return mixed.__bases__[1]


@dataclass
class _Frame:
    """A module that runs, and the products and softmaxes that it has called."""

    module: nn.Module
    events: list[Product | Tensor] = field(default_factory=list)
    asks: bool = False

    @property
    def attends(self) -> bool:
        """Whether the last three calls are the two products of attention with their softmax."""
        if len(self.events) < 3:
            return False
        first, scores, second = self.events[-3:]
        if not isinstance(first, Product) or not isinstance(scores, Tensor) or not isinstance(second, Product):
            return False
        size = first.left.shape[:-1].numel() * first.right.shape[-1]
        # One head more or less would not show in a flat batch of matrices, but in the softmax.
        return scores.ndim == 4 and scores.numel() == size == second.left.numel()


class Recorder(ProductsAroundSoftmax):
    """Reports written out attention: the module and the shapes of query, key and value by head.

    Args:
        record: receives them before the module continues after the second product.
    """

    def __init__(self, record: Callable[[nn.Module, torch.Size, torch.Size, torch.Size], None]) -> None:
        super().__init__()
        self._record = record
        self._frames: list[_Frame] = []

    def product(self, product: Product) -> Tensor:
        """Compute and note a product."""
        self._note(product)
        return product.dense()

    def softmax(self, scores: Tensor, dtype: torch.dtype, dense: Callable[[], Tensor]) -> Tensor:
        """Compute and note a softmax."""
        self._note(scores)
        return dense()

    def asked(self, module: nn.Module) -> None:
        """Hear that a module has called an attention function, whose products are not its own."""
        for frame in self._frames:
            frame.asks |= frame.module is module

    def _note(self, event: Product | Tensor) -> None:
        frame = self._frames[-1] if self._frames else None
        if frame is None or frame.asks:
            return
        frame.events.append(event)
        if not frame.attends or not writes_attention(frame.module):
            return
        first, scores, second = frame.events[-3:]
        assert isinstance(first, Product) and isinstance(scores, Tensor) and isinstance(second, Product)
        if len(frame.events) % 3:
            raise SiteError(
                f"{type(frame.module).__name__} computes attention by itself, with more products of activations than "
                "query · key and weights · values: use coverage 'linear'"
            )
        heads = scores.shape[-3]
        parts = (first.left, first.right.transpose(-1, -2), second.right)
        self._record(frame.module, *((x if x.ndim == 4 else x.unflatten(0, (-1, heads))).shape for x in parts))

    @contextmanager
    def following(self, model: nn.Module) -> Iterator[None]:
        """Note which module runs, of those that have parts: a softmax or dropout is a part of the one around it."""
        handles = []
        for module in model.modules():
            if next(module.children(), None) is not None:
                handles += [
                    module.register_forward_pre_hook(lambda running, _: self._frames.append(_Frame(running))),
                    module.register_forward_hook(lambda *_: self._frames.pop() and None, always_call=True),
                ]
        with hooked(handles):
            yield
