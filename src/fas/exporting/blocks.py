"""A converted model as blocks: the neurons of one site between the linear layers around them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fas import registry
from fas.errors import SiteError
from fas.kernels import torch_
from fas.layers.linear import SpikingLinear
from fas.layers.population import Population
from fas.layers.simulation import Simulation
from fas.recording import record
from fas.surgery.probe import hooked
from fas.surgery.replace import populations, spiking_layers
from fas.surgery.sites import is_linear
from fas.types import OPERANDS, Neuron


@dataclass(frozen=True, eq=False)
class Affine:
    """A linear layer, y = W x + b.

    Attributes:
        path: dotted name in the model.
        weight: W [out, in], float32.
        bias: b with what calibration added to it [out], float32.
    """

    path: str
    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return W x + b for x [*B, in]."""
        return nn.functional.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


@dataclass(frozen=True, eq=False)
class Trace:
    """What a block received and answered in one run of the model; N rows are samples times positions.

    Attributes:
        current: x_t [n, N, C], in the unit of the activation; n = 1 where it is the same at every step, else T.
        spikes: s_t [T, N, C], int8, with their signs.
        output: of every layer after it, side by side [n, N, out]; the mean over T where n = 1.
        source: what the layer in front received [n, N, in]; None without such a layer.
    """

    current: Tensor
    spikes: Tensor
    output: Tensor
    source: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Block:
    """The neurons of a site with the layers that read them, and the one in front where nothing stands between.

    Attributes:
        path: of the site.
        neuron: the neuron model.
        timesteps: T.
        even: whether the input is the same at every step (layerwise) or comes as it comes (online).
        log_threshold: ln θ (C,).
        v_init: v_0/θ (C,).
        offset: μ (C,), in the unit of the activation.
        layers: that read the spikes.
        before: the layer whose output is the current itself, where the neuron replaces the activation.
        trace: of one run, if there was one.
    """

    path: str
    neuron: Neuron
    timesteps: int
    even: bool
    log_threshold: Tensor
    v_init: Tensor
    offset: Tensor
    layers: tuple[Affine, ...]
    before: Affine | None = None
    trace: Trace | None = None

    @property
    def channels(self) -> int:
        """C."""
        return len(self.log_threshold)

    @property
    def threshold(self) -> Tensor:
        """θ (C,), in the unit of the activation."""
        return self.log_threshold.exp()

    @property
    def slices(self) -> dict[str, tuple[int, int]]:
        """Where each layer's outputs begin and end, side by side."""
        ends, end = {}, 0
        for layer in self.layers:
            ends[layer.path] = end, end + len(layer.weight)
            end += len(layer.weight)
        return ends

    def modules(self) -> tuple[Population, list[SpikingLinear]]:
        """Return the block as modules of this library, set to its T and schedule."""
        simulation = Simulation(timesteps=self.timesteps, schedule="layerwise" if self.even else "online")
        population = Population(self.path, self.channels, self.neuron, simulation, readers=max(1, len(self.layers)))
        layers: list[SpikingLinear] = []
        with torch.no_grad():
            population.log_threshold.copy_(self.log_threshold)
            population.offset.copy_(self.offset)
            population.v_init.copy_(self.v_init)
            for layer in self.layers:
                dense = nn.Linear(self.channels, len(layer.weight))
                dense.weight.copy_(layer.weight)
                dense.bias.copy_(layer.bias)
                layers.append(SpikingLinear(dense, population, owner=not layers))
        return population, layers


@torch.no_grad()
def blocks(
    model: Any,
    inputs: Mapping[str, Tensor] | None = None,
    *,
    sites: Sequence[str] | None = None,
    rows: int = 32,
) -> list[Block]:
    """Return the blocks of a converted model in the order of its sites; see ``left_out`` for those without one.

    Args:
        model: a converted model, set to the T and schedule that are meant.
        inputs: of its forward, to run it once and keep what each block received and answered.
        sites: names of the sites that are wanted; all if None.
        rows: samples times positions to keep, from the first.

    Raises:
        SiteError: a site that the model does not have, or one without linear layers, or that the inputs do not use.
        NotCalibratedError: thresholds have not been set.
    """
    there, apart = populations(model), left_out(model)
    linear = [site for site in model.sites if site.path not in apart]
    for path in sites or ():
        if path not in {site.path for site in linear}:
            raise SiteError(
                f"{path} is {apart.get(path, 'no site of the model')}; sites with linear layers are "
                + ", ".join(site.path for site in linear)
            )
    wanted = [site for site in linear if sites is None or site.path in sites]
    if not wanted:
        raise SiteError("no site of the model has linear layers after it, so there is no block")
    for site in wanted:
        there[site.path].check()
        if (neuron := there[site.path].neuron).adapts:
            raise SiteError(
                f"site {site.path}: thresholds of {type(neuron).__name__} follow the size of each token, which no "
                "other format has: convert with neuron='signed_if' or 'soft_reset_if'"
            )
    runs = {} if inputs is None else _traces(model, inputs, [site.path for site in wanted], rows)
    layers, even = spiking_layers(model), model.schedule == "layerwise"
    found = []
    for site in wanted:
        population = there[site.path]
        run = runs.get(site.path)
        found.append(
            Block(
                path=site.path,
                neuron=population.neuron,
                timesteps=model.timesteps,
                even=even,
                log_threshold=_wide(population.log_threshold, site.channels),
                v_init=_wide(population.v_init, site.channels),
                offset=_wide(population.offset, site.channels),
                layers=tuple(affine(path, layers[path]) for path in site.layers),
                before=None if run is None else run.before,
                trace=None if run is None else run.trace,
            )
        )
    return found


def entry_of(neuron: Neuron) -> dict[str, Any]:
    """Return what a file says of a neuron model, JSON types."""
    return {"neuron": type(neuron).__module__.rpartition(".")[2], "signed": neuron.signed}


def neuron_of(entry: Mapping[str, Any]) -> Any:
    """Return the neuron model that ``entry_of`` describes."""
    neuron: Any = registry.load("neurons", entry["neuron"])
    return neuron(**({"signed": entry["signed"]} if "signed" in {field.name for field in fields(neuron)} else {}))


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Return ‖found − wanted‖ / ‖wanted‖."""
    return float((found - wanted).norm() / wanted.norm().clamp_min(torch.finfo(wanted.dtype).tiny))


def left_out(model: Any) -> dict[str, str]:
    """Return the sites of a converted model that have no block, with what they are instead."""
    layers = spiking_layers(model)
    found = {}
    for site in model.sites:
        if site.role in OPERANDS:
            found[site.path] = "a factor in attention, which no layer follows"
        elif not all(isinstance(layers[path], SpikingLinear) for path in site.layers):
            found[site.path] = "the input of a convolution"
    return found


def _wide(parameter: Tensor, channels: int) -> Tensor:
    return parameter.detach().float().cpu().expand(channels).clone()


def affine(path: str, layer: nn.Module) -> Affine:
    """Return a linear layer of whichever kind, on the CPU."""
    weight: Any = layer.weight
    bias: Any = layer.bias
    matrix = weight.detach() if isinstance(layer, nn.Linear) else weight.detach().T
    if isinstance(layer, SpikingLinear):
        matrix = weight.detach().T if layer.transposed else weight.detach()
    summed = matrix.new_zeros(len(matrix)).float() if bias is None else bias.detach().float()
    if isinstance(layer, SpikingLinear):
        summed = summed + layer.correction.detach()
    return Affine(path, matrix.float().cpu().contiguous(), summed.cpu().clone())


@dataclass
class _Run:
    """What hooks have seen of one site in its first call."""

    current: Tensor | None = None
    decoded: Any = None
    outputs: dict[str, Tensor] = field(default_factory=dict)
    before: Affine | None = None
    source: Tensor | None = None
    trace: Trace | None = None


def _traces(model: Any, inputs: Mapping[str, Tensor], sites: Sequence[str], rows: int) -> dict[str, _Run]:
    runs = {path: _Run() for path in sites}
    online = model.schedule == "online"
    spiking = model.simulation.using(network="snn", weights="float")
    with spiking, _watching(model, runs), record(model, trains=True) as recording:
        model.logits_per_step(**inputs) if online else model(**inputs)
    for path, run in runs.items():
        population = populations(model)[path]
        if run.current is None or run.decoded is None:
            raise SiteError(f"{path} was not reached by the inputs: pass inputs that use it, or leave the site out")
        trains = recording.sites[path].trains[0].flatten(1, -2)[:, :rows]
        by_step = partial(
            _by_step, steps=len(trains) if online else 1, rows=rows,
            difference=online and model.operators == "difference",
        )  # fmt: skip
        current = by_step(run.current)
        # Even input is answered by spikes of its own sign only.
        emitted = by_step(run.decoded) if online else current
        sign = (emitted - population.offset).sign()
        outputs = [by_step(output) for output in run.outputs.values()]
        source = None if run.source is None else by_step(run.source).cpu()
        run.trace = Trace(
            current=current.cpu(),
            spikes=(trains.to(sign.dtype) * sign).to(torch.int8).cpu(),
            output=torch.cat(outputs, -1).cpu(),
            source=source,
        )
    return runs


def _by_step(x: Tensor, steps: int, rows: int, difference: bool) -> Tensor:
    """[T·B, …, C], running means or values of each step, to values of each step [T, rows, C]."""
    each = x.unflatten(0, (steps, -1)).flatten(1, -2)[:, :rows].float()
    if not difference:
        return each
    clock = torch.arange(1, steps + 1, device=each.device).view(-1, 1, 1)
    return torch.diff(each * clock, dim=0, prepend=torch.zeros_like(each[:1]))


@contextmanager
def _watching(model: Any, runs: dict[str, _Run]) -> Iterator[None]:
    """Hook what is needed to know the currents, spikes and outputs of sites, and the layers right in front."""
    latest: dict[str, tuple[Tensor, Tensor]] = {}
    decoded: dict[str, Any] = {}
    replaced = {site.path for site in model.sites if site.activation is not None}

    def see_layer(path: str, run: _Run | None, _: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        latest[path] = arguments[0], output
        if run is not None:
            run.outputs.setdefault(path, output)

    def see_population(path: str, _: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        decoded[path] = output
        run = runs.get(path)
        if run is None or run.current is not None:
            return
        run.current, run.decoded = arguments[0], output
        if path in replaced:
            _find_before(model, run, latest, decoded)

    hooks = [p.register_forward_hook(partial(see_population, path)) for path, p in populations(model).items()]
    for path, module in model.named_modules():
        if is_linear(module) or isinstance(module, SpikingLinear):
            run = runs.get(module.population.path) if isinstance(module, SpikingLinear) else None
            hooks.append(module.register_forward_hook(partial(see_layer, path, run)))
    with hooked(hooks):
        yield


def _find_before(
    model: Any, run: _Run, latest: Mapping[str, tuple[Tensor, Tensor]], decoded: Mapping[str, Any]
) -> None:
    """Record the layer whose very output a site receives."""
    for path, (received, output) in latest.items():
        if output is run.current:
            layer = model.get_submodule(path)
            spiking = isinstance(layer, SpikingLinear)
            run.before = affine(path, layer)
            run.source = _values(decoded[layer.population.path]) if spiking else received


def _values(encoded: Any) -> Tensor:
    """Return what a population sends as a mean; a single row may come as counts."""
    if isinstance(encoded, Tensor):
        return encoded
    counts, gain, code = encoded
    return torch_.decode(counts, code, code.unit.dtype, gain)
