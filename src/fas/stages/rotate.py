"""Turning the residual stream: the same function with outliers spread over all channels."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fas.errors import SiteError
from fas.layers.gated_operators import GatedNorm
from fas.layers.linear import SpikingLinear
from fas.surgery.gated import norm_form
from fas.surgery.parameters import undone_on_error
from fas.surgery.probe import evaluating, hooked, probe_inputs, without_cache
from fas.surgery.sites import is_linear
from fas.types import Batches, Kept, Progress, Record, Stage

# Far above the rounding of float32 weights through a deep model, far below a part that was overlooked.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Rotate(Stage):
    r"""Fold an orthogonal Q into the weights around the residual stream x, which becomes x Q.

    Embeddings and layers that write to the stream turn into E Q and Qᵀ W; gains of the normalisations move
    into the layers that read them, W diag(g) Q, and become one. RMSNorm keeps its value under any Q, for
    which Hadamard's matrix with random signs serves where the width is a power of two, else a random one.
    LayerNorm keeps its value under a Q that maps (1, …, 1) onto itself: subtracting the mean commutes with
    it, so that neither weights need centring nor the module another class. Tied embeddings are untied.

    What reads and writes is found by running the model; that the answer stays the same is checked, and the
    weights are put back if it does not (post-norm models, streams that something else writes to).

    Attributes:
        seed: of the random signs or directions.

    Source: Ashkboos et al. 2024 (QuaRot, arXiv 2404.00456) for RMSNorm. Deviation: they turn LayerNorm into
    RMSNorm by centring the weights; here Q keeps the mean instead.
    """

    seed: int = 0

    prepares: ClassVar[bool] = True

    def run(self, model: Any, batches: Batches, progress: Progress | None = None, kept: Kept | None = None) -> Record:
        """Rotate in place, needing no data.

        Raises:
            SiteError: a model whose residual stream cannot be turned; its weights are as before.
        """
        began = time.perf_counter()
        before, streams = _run(model)
        _untie(model, {path for paths in streams.readers.values() for path in paths})
        with undone_on_error(model.parameters()):
            _turn(model, streams, self.seed)
            after, _ = _run(model)
            change = float((after - before).norm() / before.norm())
            if not change < _TOLERANCE:
                raise SiteError(
                    f"the residual stream of {type(model).__name__} cannot be turned: its answer would change by "
                    f"{change:.2g} of itself, because something other than embeddings and linear layers writes to the "
                    "stream, or a normalisation stands after the sum; convert it with rotate=False"
                )
            if progress is not None:
                progress("rotate", 1, 1)
        return self.record({"seconds": time.perf_counter() - began, "change": change})


@dataclass
class _Streams:
    """Normalisations of the residual stream with the layers that read each, in the order of execution."""

    readers: dict[str, list[str]]
    called: list[str]


def _run(model: Any) -> tuple[Tensor, _Streams]:
    """Run a probe through the dense network; return its answer and what reads what."""
    made: dict[int, tuple[str, Tensor]] = {}
    streams = _Streams({}, [])

    # By storage: heads read a slice of the last normalisation.
    def normalised(path: str, output: Tensor) -> None:
        made[output.untyped_storage().data_ptr()] = path, output

    def read(path: str, arguments: Any, named: Any) -> None:
        streams.called.append(path)
        x = next(value for value in (*arguments, *named.values()) if isinstance(value, Tensor))
        norm = made.get(x.untyped_storage().data_ptr())
        if norm is not None and x.shape[-1] == norm[1].shape[-1]:
            readers = streams.readers.setdefault(norm[0], [])
            if path not in readers:
                readers.append(path)

    handles = []
    for path, module in model.named_modules():
        if _form(module) is not None:
            handles.append(module.register_forward_hook(lambda _, __, output, path=path: normalised(path, output)))
        elif isinstance(module, SpikingLinear) or is_linear(module):
            look = partial(read, path)
            handles.append(
                module.register_forward_pre_hook(lambda _, *inputs, look=look: look(*inputs), with_kwargs=True)
            )
    with hooked(handles), evaluating(model), model.simulation.using(network="ann", schedule="layerwise"):
        output = model(**probe_inputs(model), **without_cache(model))
    return output[0].double(), streams


def _turn(model: Any, streams: _Streams, seed: int) -> None:
    if not streams.readers:
        raise SiteError(f"{type(model).__name__} has no linear layer that reads a normalisation: nothing to rotate")
    norms = {path: model.get_submodule(path) for path in streams.readers}
    width = len(next(iter(norms.values())).weight)
    forms: dict[str, Any] = {path: _form(module) for path, module in norms.items()}
    device = next(iter(norms.values())).weight.device
    turn = rotation(width, keeps_mean=any(form["centred"] for form in forms.values()), seed=seed).to(device)
    readers = {path for paths in streams.readers.values() for path in paths}
    for path, norm in norms.items():
        if len(norm.weight) != width:
            raise SiteError(f"{path} normalises {len(norm.weight)} channels but the residual stream has {width}")
        gain = norm.weight.detach().double() + forms[path]["plus_one"]
        for reader in streams.readers[path]:
            _change(model.get_submodule(reader), lambda weight, gain=gain: (weight * gain) @ turn)
        bias = getattr(norm, "bias", None)
        if bias is not None:
            if bool((gain == 0).any()):
                raise SiteError(f"{path} has a gain of zero beside a bias, which no layer after it can carry")
            _put(bias, (bias.detach().double() / gain) @ turn)
        _put(norm.weight, torch.full_like(gain, 0.0 if forms[path]["plus_one"] else 1.0))
    for path in dict.fromkeys(streams.called):
        layer = model.get_submodule(path)
        if path not in readers and _outputs(layer) == width:
            _change(layer, lambda weight: turn.T @ weight)
            if layer.bias is not None:
                _put(layer.bias, layer.bias.detach().double() @ turn)
    seen: set[int] = set()
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.embedding_dim == width and id(module.weight) not in seen:
            seen.add(id(module.weight))
            _put(module.weight, module.weight.detach().double() @ turn)


def rotation(width: int, *, keeps_mean: bool, seed: int) -> Tensor:
    """Return an orthogonal matrix [width, width], float64, that maps (1, …, 1) onto itself if it ``keeps_mean``."""
    generator = torch.Generator().manual_seed(seed)
    if not keeps_mean and width & (width - 1) == 0:
        hadamard = torch.ones(1, 1, dtype=torch.float64)
        while len(hadamard) < width:
            hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)])
        signs = torch.randint(0, 2, (width, 1), generator=generator) * 2 - 1
        return signs * hadamard / width**0.5
    free = width - keeps_mean
    turn, _ = torch.linalg.qr(torch.randn(free, free, generator=generator, dtype=torch.float64))
    if not keeps_mean:
        return turn
    # An orthogonal basis whose first direction is that of (1, …, 1): only the others turn.
    start = torch.randn(width, width, generator=generator, dtype=torch.float64)
    start[:, 0] = 1
    basis, _ = torch.linalg.qr(start)
    return basis @ torch.block_diag(torch.ones(1, 1, dtype=torch.float64), turn) @ basis.T


def _untie(model: Any, readers: set[str]) -> None:
    """Give readers that share their weight with an embedding one of their own."""
    shared = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for path in readers:
        layer = model.get_submodule(path)
        if id(layer.weight) in shared:
            layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=layer.weight.requires_grad)
            model.config.get_text_config().tie_word_embeddings = False
            model.config.tie_word_embeddings = False


def _change(layer: Any, change: Any) -> None:
    """Replace the weight [out, in] of a layer by a function of it."""
    transposed = _is_transposed(layer)
    weight = layer.weight.detach().double()
    changed = change(weight.T if transposed else weight)
    _put(layer.weight, changed.T if transposed else changed)


def _put(parameter: Tensor, value: Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(value)


def _outputs(layer: Any) -> int:
    return int(layer.weight.shape[1 if _is_transposed(layer) else 0])


def _is_transposed(layer: Any) -> bool:
    return bool(layer.transposed) if isinstance(layer, SpikingLinear) else not isinstance(layer, nn.Linear)


def _form(module: nn.Module) -> dict[str, Any] | None:
    """Return which normalisation a module computes, None if it is none."""
    if isinstance(module, GatedNorm):
        return {"centred": module.centred, "plus_one": module.plus_one}
    leaf = next(module.children(), None) is None and type(module).__name__.endswith("Norm")
    return norm_form(module) if leaf else None
