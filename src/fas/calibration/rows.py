"""Rows of activations that a walk keeps: finite ones, without padding, evenly spread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fas.distributed import gathered
from fas.errors import CalibrationError
from fas.layers.experts import is_routed
from fas.surgery.probe import Reached, hooked
from fas.surgery.replace import attention_of
from fas.types import Network, Site

if TYPE_CHECKING:
    from fas.calibration.walk import _Walker

# Activations of one site in one network at most: those of a block's sites, and what is computed of them, must fit into
# memory.
_BYTES = 1 << 28


def kept_rows(x: Tensor, mask: Tensor | None, limit: int, where: str) -> Tensor:
    """Return up to ``limit`` activations [n, C] in float32, without padding."""
    if not bool(x.isfinite().all()):
        raise CalibrationError(
            f"the input of {where} has NaN or infinite values; check the weights of the layers before it "
            "and the calibration data"
        )
    if mask is not None:
        x = x[mask.bool()]
    return thinned(x.detach().reshape(-1, x.shape[-1]), limit).to(torch.float32, copy=True)


def thinned(x: Tensor, limit: int) -> Tensor:
    """Return up to ``limit`` rows, evenly spread."""
    if len(x) <= limit:
        return x
    return x[torch.linspace(0, len(x) - 1, limit, device=x.device).round().long()]


def recorded(
    walker: _Walker, sites: Sequence[Site], network: Network, run: Callable[[int, Network], None], *, to_end: bool
) -> dict[str, Tensor]:
    """Return the inputs of sites in one network [n, C], by path; a pass ends at the last of them unless ``to_end``."""
    recorders = [_Recorder(walker, site, network, last=site is sites[-1] and not to_end) for site in sites]
    with hooked([handle for recorder in recorders for handle in recorder.handles]):
        for i in walker.mine:
            for recorder in recorders:
                recorder.begin(i)
            run(i, network)
            for recorder in recorders:
                recorder.end()
    return {recorder.site.path: recorder.found() for recorder in recorders}


class _Recorder:
    """Keeps what one site receives in one network, batch by batch."""

    def __init__(self, walker: _Walker, site: Site, network: Network, *, last: bool) -> None:
        self.population, layers = walker.neurons[site.path], walker.layers
        self.experts = layers[site.path].dense().experts if is_routed(self.population, layers) else None
        self.walker, self.site, self.network, self.last = walker, site, network, last and self.experts is None
        most = min(walker.max_rows, _BYTES // (4 * site.channels))
        self.limit = max(1, most // len(walker.batches))
        self.where = f"{site.path} ({'dense' if network == 'ann' else 'spiking'} network)"
        self.rows: list[Tensor] = []
        self.handles = [self.population.register_forward_pre_hook(self._look)]
        if site.role in ("key", "value"):
            attention = walker.model.get_submodule(attention_of(site))
            self.handles.append(attention.register_forward_pre_hook(self._enter, with_kwargs=True))

    def begin(self, i: int) -> None:
        """Expect batch i."""
        self.batch, self.crossing = i, False
        self.calls: list[Tensor] = []
        self.latest: Tensor | None = None

    def end(self) -> None:
        """Keep what the batch has brought."""
        if self.calls:
            self.rows.append(thinned(torch.cat(self.calls), self.limit))
        self.calls, self.latest = [], None

    def found(self) -> Tensor:
        """Return the rows of all processes.

        Raises:
            CalibrationError: there are none.
        """
        none = self.population.log_threshold.new_empty(0, self.site.channels)
        rows = gathered(torch.cat(self.rows or [none]))
        if not len(rows) and self.experts is None:
            raise CalibrationError(
                f"no activations reach {self.where}: the calibration data is empty, all padding, or does not take the "
                "model there; calibrate on other data, or exclude the layer"
            )
        return rows

    def _enter(self, _: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        inputs = (*arguments, *named.values())
        self.crossing = any(self.walker.is_encoded(self.batch, self.network, x) for x in inputs)

    def _look(self, _: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        # Every layer of the site asks for the spikes of the same tensor.
        if arguments[0] is not self.latest:
            self.latest = x = arguments[0]
            encoded = self.crossing or self.walker.is_encoded(self.batch, self.network, x)
            mask = self.walker.mask(self.batch, self.site, self.population, x, encoded=encoded)
            if self.experts is not None:
                given, taken = self.walker.batches[self.batch].get("attention_mask"), self.experts.taken
                mask = given.flatten()[taken] if given is not None and given.numel() == len(taken) else None
            self.calls.append(kept_rows(x, mask, self.limit, self.where))
        if self.last:
            raise Reached
