"""Going through a converted model site by site, on what its spiking predecessors really produce.

Two streams of activations are kept, of the dense network (ann) and of the spiking one (snn). Blocks that follow each
other are replayed one at a time from their recorded inputs, so a walk costs a few passes through the model and holds
the input of one block in both networks and its dense output, whatever the depth. What lies before and after the blocks
is reached by passes that leave them out. Where blocks do not hand over directly (branches), each is reached from the
model's input instead: slower, the same. So are layers that run several times in a pass (ALBERT): sites see every input.

A model larger than the memory is walked through with a ``Residence``, which has one block of it there at a time. Of
several processes each runs its share of the batches; all see the rows of all, in their order.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from fas.calibration.figures import Figures, tell
from fas.calibration.layout import hidden_of, left_out, observe, one_row, siblings
from fas.calibration.masks import mask_of_rows, masks_of_sites
from fas.calibration.residence import Residence
from fas.calibration.rows import recorded
from fas.calibration.teacher import Teacher
from fas.distributed import agree, check_same, share
from fas.layers.experts import is_routed
from fas.layers.population import Population
from fas.layers.simulation import Simulation
from fas.memory import give_back
from fas.storage.digest import pieces
from fas.surgery.probe import Reached, evaluating, hooked, without_cache
from fas.surgery.replace import populations, spiking_layers
from fas.surgery.sites import block_of
from fas.training.descent import check_batches, inputs_of
from fas.types import Kept, Network, Site

logger = logging.getLogger(__name__)

Batch = Mapping[str, Tensor]
_PARAMETERS = ("threshold", "offset", "v_init")


@dataclass(frozen=True)
class Visit:
    """What a stage sees at one site.

    Attributes:
        site, population: the site and its neurons.
        ann: inputs of the site in the dense network, or in another teacher, [n, C], float32.
        snn: inputs of the site after spiking predecessors [n, C], the same rows.
    """

    site: Site
    population: Population
    ann: Tensor
    snn: Tensor


@dataclass(frozen=True)
class _Call:
    """How a block is called on one batch, apart from its hidden state."""

    arguments: tuple[Any, ...]
    named: Mapping[str, Any]

    def on(self, module: nn.Module, hidden: Tensor) -> Tensor:
        """Call the block on a hidden state and return the next one."""
        if self.arguments:
            return hidden_of(module(hidden, *self.arguments[1:], **self.named))
        return hidden_of(module(**{**self.named, "hidden_states": hidden}))


def walk(
    model: Any,
    sites: Sequence[Site],
    batches: Sequence[Batch],
    visit: Callable[[Visit], Figures | None],
    *,
    max_rows: int = 32768,
    teacher: Teacher | None = None,
    kept: Kept | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Figures]:
    """Visit every site in the order of execution; a visited site spikes from then on.

    Sites not yet visited pass their activations unchanged, so stages may leave thresholds unset until their site comes.
    Rows that an attention mask marks as padding are left out.

    Args:
        model: a converted model; runs layerwise and collapsed during the walk.
        sites: its sites in the order of execution.
        batches: inputs of its forward.
        visit: sets the parameters of one site; may return figures about it.
        max_rows: activations kept per site, evenly spread over the batches; at most 256 MiB of them.
        teacher: runs in the place of the dense network; not with a ``Residence``.
        kept: sites that an interrupted walk has visited, which are not visited again; takes those of this one. A
            ``Residence`` has one block of the model in memory at a time.
        progress: told after each site.

    Returns:
        The figures of every site for which there are some, by path.

    Raises:
        CalibrationError: no batches, no activations at a site, or some that are not finite (the layer is named).
        FASError: of several processes one has other batches, or is gone.
    """
    check_batches(batches)
    simulation: Simulation = model._simulation
    residence = kept if isinstance(kept, Residence) else None
    neurons, layers = populations(model), spiking_layers(model)
    check_same("calibration batches", pieces(batches), next(iter(neurons.values())).log_threshold.device)
    figures: dict[str, Figures] = {}
    missed, done = list[Site](), 0
    with evaluating(model), simulation.using(schedule="layerwise", execution="collapsed", observers=[]):
        with _only(neurons.values(), asleep=teacher is None) as active:
            walker = _Walker(model, simulation, batches, max_rows, residence, teacher)
            for segment in walker.segments(sites):
                for site in segment.sites:
                    population = neurons[site.path]
                    own = {f"neuron.{name}": value for name, value in population.named_parameters(recurse=False)}
                    own |= {f"{path}.correction": layers[path].correction for path in site.layers}
                    found = None if kept is None else kept.found(site.path)
                    if found is None:
                        ann, snn = segment.inputs(site)
                        if not len(snn):
                            missed.append(site)
                            continue
                        if residence is not None:
                            residence.prepare(site)
                        value = visit(Visit(site, population, ann, snn)) or {}
                        agree(own.values())
                        if kept is not None:
                            kept.add(site.path, value, own)
                    else:
                        value = found[0]
                        for name, tensor in found[1].items():
                            own[name].copy_(tensor)
                    if value:
                        figures[site.path] = value
                    active(population)
                    done += 1
                    if progress is not None:
                        progress(site.path, done, len(sites))
                if residence is None:
                    tell(segment.sites, figures, done, len(sites))
        _pool(missed, sites, neurons)
    return figures


def dense_inputs(model: Any, batches: Sequence[Batch], max_rows: int) -> dict[str, Tensor]:
    """Return the inputs of every site in the dense network [n, C], float32 by path, the rows that a walk sees.

    An expert that no token reaches has none.
    """
    with evaluating(model), model.simulation.using(schedule="layerwise", execution="collapsed", observers=[]):
        walker = _Walker(model, model.simulation, batches, max_rows, None, None)
        return recorded(walker, model.sites, "ann", walker.run, to_end=True)


def _pool(missed: Sequence[Site], sites: Sequence[Site], neurons: Mapping[str, Population]) -> None:
    """Give experts that no token reached the mean parameters of the other experts of their layer."""
    for site in missed:
        lost = {other.path for other in missed}
        others = [neurons[s.path] for s in sites if _group(s) == _group(site) and s.path not in lost]
        if others and all(other.is_set for other in others):
            parts = (torch.stack([getattr(o, name).mean() for o in others]).mean() for name in _PARAMETERS)
            neurons[site.path].set(*parts)
    if missed:
        logger.warning(
            "calibration reached no token of %d experts, which take the mean thresholds of their layer: %s; calibrate "
            "on more tokens",
            len(missed),
            ", ".join(site.path for site in missed),
        )


def _group(site: Site) -> str:
    return site.path.rpartition(".")[0]


@contextmanager
def _only(neurons: Any, *, asleep: bool) -> Iterator[Callable[[Population], None]]:
    """Silence all populations (those with thresholds may stay awake), let them be woken, and wake all at the end."""
    everyone = list(neurons)
    for population in everyone:
        population.active = not asleep
    try:
        yield lambda population: setattr(population, "active", True)
    finally:
        for population in everyone:
            population.active = True
            population.reset()


@dataclass
class _Walker:
    model: Any
    simulation: Simulation
    batches: Sequence[Batch]
    max_rows: int
    residence: Residence | None
    teacher: Teacher | None

    def __post_init__(self) -> None:
        self.encoder = self.model.get_encoder() if getattr(self.model.config, "is_encoder_decoder", False) else None
        self.mine = share(len(self.batches))
        self.neurons, self.layers = populations(self.model), spiking_layers(self.model)
        # The encoder's answer to each batch, as the decoder's cross-attention receives it.
        self.encoded: dict[tuple[int, Network], Tensor] = {}
        # Chains that passes through the model leave out, since what comes out of them is known.
        self.passed: list[_Chain] = []
        row = self.batches[0] if self.encoder is not None else one_row(self.batches[0])
        self.layout = self.residence.layout if self.residence else observe(self.model, lambda: self.run(0, "ann", row))
        self.masks = masks_of_sites(self.model, self.batches[0], lambda: self.run(0, "ann"))

    def segments(self, sites: Sequence[Site]) -> Iterator[_Segment]:
        """Group sites by block, and blocks by the chain in which one hands over to the next."""
        chain: _Chain | None = None
        for block, group in groupby(sites, key=lambda s: block_of(s.path)):
            members = list(group)
            again = any(site.path in self.layout.repeated for site in members)
            if chain is not None and (block is None or again or not chain.reaches(block)):
                self.leave(chain)
                chain = None
            if block is None or again:
                yield _Segment(self, members, self.run, again)
                continue
            if chain is None:
                self.passed = [known for known in self.passed if block not in known.blocks]
                chain = _Chain(self, block)
            chain.advance(chain.blocks.index(block))
            yield _Segment(self, members, chain.run, ahead=self.residence is None)
        if chain is not None and self.residence is not None:
            self.leave(chain)

    def leave(self, chain: _Chain) -> None:
        """Go to the end of a chain, if that spares later passes the way through it."""
        if chain.can_leave_out:
            chain.advance(len(chain.blocks))
            self.passed.append(chain)

    def using(self, network: Network) -> AbstractContextManager[None]:
        taught = self.teacher if network == "ann" else None
        return self.simulation.using(network=network) if taught is None else taught.running()

    def run(self, i: int, network: Network, part: Batch | None = None) -> None:
        """Run the whole model on batch i, or part of it; a hook may stop it."""
        inputs = inputs_of(part or self.batches[i])

        def keep(_: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            self.encoded[i, network] = hidden_of(output)

        with ExitStack() as stack:
            if self.encoder is not None:
                stack.enter_context(self.encoder.register_forward_hook(keep))
            for chain in self.passed:
                stack.enter_context(left_out(self.model, self.layout, chain.blocks, chain.hidden[network, i]))
            stack.enter_context(self.using(network))
            stack.enter_context(suppress(Reached))
            self.model(**inputs, **without_cache(self.model))

    def is_encoded(self, i: int, network: Network, x: object) -> bool:
        """Whether a tensor is the encoder's answer to batch i."""
        return x is not None and x is self.encoded.get((i, network))

    def mask(self, i: int, site: Site, population: Population, x: Tensor, *, encoded: bool) -> Tensor | None:
        """Return the attention mask of the rows that a site receives (``mask_of_rows``)."""
        # Encoder and decoder may be of the same length: whose rows these are is seen by where the site lies, and in
        # cross-attention by what it reads.
        name = self.masks.get(site.path, "attention_mask")
        if self.encoder is not None and not encoded:
            inside = any(module is population for module in self.encoder.modules())
            name = "attention_mask" if inside else "decoder_attention_mask"
        return mask_of_rows(self.batches[i].get(name), site, x)


@dataclass
class _Segment:
    """Sites that one kind of replay reaches: the whole model, or one block of a chain."""

    walker: _Walker
    sites: list[Site]
    run: Callable[[int, Network], None]
    again: bool = False
    # Whether a dense pass continues to the end of the block, where the next one begins.
    ahead: bool = False
    # Rows of the dense network, and of experts, that a pass has shown ahead of their visit.
    dense: dict[str, Tensor] = field(default_factory=dict)
    routed: dict[str, Tensor] = field(default_factory=dict)

    def inputs(self, site: Site) -> tuple[Tensor, Tensor]:
        """Return the inputs of a site [n, C] in the dense and in the spiking network."""
        if is_routed(population := self.walker.neurons[site.path], self.walker.layers):
            # The networks may route a token differently: rows of the spiking one stand for both. Experts of one layer
            # do not see each other, so that one pass shows all.
            if population.path not in self.routed:
                group = [other for other in self.sites if _group(other) == _group(site)]
                self.routed = self._recorded(group[group.index(site) :], "snn")
            rows = self.routed.pop(site.path)
            return rows, rows
        if site.path not in self.dense:
            # What has been visited changes nothing in the dense network: one pass shows all sites that are left.
            self.dense = self._recorded(self.sites[self.sites.index(site) :], "ann")
        return self.dense.pop(site.path), self._recorded([site], "snn")[site.path]

    def _recorded(self, sites: Sequence[Site], network: Network) -> dict[str, Tensor]:
        return recorded(self.walker, sites, network, self.run, to_end=self.again or (self.ahead and network == "ann"))


class _Chain:
    """Blocks of one list that hand their hidden state on, each replayed from where the last one ended."""

    def __init__(self, walker: _Walker, first: str) -> None:
        self.walker = walker
        self.blocks = walker.layout.chain(siblings(walker.model, first), first)
        self.can_leave_out = walker.layout.can_leave_out(self.blocks)
        self.position = self.visited = 0
        self.hidden: MutableMapping[tuple[Network, int], Tensor] = {}
        if walker.residence is not None:
            self.position, self.hidden = walker.residence.hidden(self.blocks)
        self.calls: dict[tuple[Network, int], dict[str, _Call]] = {}
        # What the present block has returned in a pass that went to its end.
        self.ahead: dict[tuple[Network, int], Tensor] = {}
        networks: tuple[Network, Network] = ("ann", "snn")
        for network in networks if self.position < len(self.blocks) else ():
            for i in walker.mine:
                self._record(i, network)

    def _record(self, i: int, network: Network) -> None:
        """Run the model on one batch up to the last block; keep how each is called and the first hidden state."""
        calls = self.calls[network, i] = {}

        def before(path: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            hidden = arguments[0] if arguments else named.get("hidden_states")
            rest = (None, *arguments[1:]) if arguments else ()
            calls[path] = _Call(rest, named if arguments else {**named, "hidden_states": None})
            if path == self.blocks[0] and self.position == 0:
                assert hidden is not None
                self.hidden[network, i] = hidden
            if path == self.blocks[-1]:
                raise Reached

        handles = [
            self.walker.model.get_submodule(path).register_forward_pre_hook(
                lambda _, arguments, named, path=path: before(path, arguments, named), with_kwargs=True
            )
            for path in self.blocks
        ]
        with (
            hooked(handles),
            left_out(self.walker.model, self.walker.layout, self.blocks if self.can_leave_out else ()),
        ):
            self.walker.run(i, network)

    def reaches(self, block: str) -> bool:
        return block in self.blocks[self.visited :]

    def advance(self, target: int) -> None:
        """Replace the hidden states by those that enter a later block, or leave the last one."""
        self.visited = target
        residence = self.walker.residence
        while self.position < target:
            path = self.blocks[self.position]
            module = self._module(path)
            for (network, i), calls in self.calls.items():
                call, found = calls.pop(path), self.ahead.pop((network, i), None)
                if found is None:
                    with self.walker.using(network):
                        found = call.on(module, self.hidden[network, i])
                self.hidden[network, i] = found
            self.position += 1
            if residence is not None:
                residence.leave(path)
            give_back()

    def run(self, i: int, network: Network) -> None:
        """Replay the present block on batch i; a hook may stop it."""
        path = self.blocks[self.position]
        module = self._module(path)
        with self.walker.using(network), suppress(Reached):
            output = self.calls[network, i][path].on(module, self.hidden[network, i])
            if network == "ann":
                self.ahead[network, i] = output

    def _module(self, path: str) -> nn.Module:
        """Return a block, which is in memory from then on."""
        if self.walker.residence is not None:
            self.walker.residence.enter(path)
        return self.walker.model.get_submodule(path)
