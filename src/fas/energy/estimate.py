"""What counted operations would cost: accountings, the dense networks to compare with, and the break-even."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor

from fas.energy.bill import Accumulator, Hardware, Line, Precision, Work
from fas.energy.count import counts_of
from fas.energy.emission import bits
from fas.energy.operations import Counts, Operations, Order, Phase, Reuse
from fas.energy.prices import Prices, load_prices
from fas.energy.rivals import BEST, Rival, measure_rivals
from fas.surgery.replace import populations
from fas.types import Batches, Measurement, Progress

Accounting = Literal["paper", "compute", "memory"]
Network = str
"""One of ``NAMES``, or of the rivals of an estimate (``Estimate.names``)."""

ACCOUNTINGS: tuple[Accounting, ...] = get_args(Accounting)
NAMES: dict[Network, str] = {
    "snn": "spiking",
    "ann": "dense",
    "ann_zeros_skipped": "dense, zeros skipped",
    "snn_int8": "spiking, INT8",
    "twin": "integer twin",
    "twin_zeros_skipped": "twin, zeros skipped",
}
BASELINES: dict[Network, Network] = {
    "ann": "snn",
    "ann_zeros_skipped": "snn",
    "twin": "snn_int8",
    "twin_zeros_skipped": "snn_int8",
}
"""Dense networks, each with the spiking network in the same arithmetic that it is compared with."""
_SKIPPING = "_zeros_skipped"
# Horowitz 2014, as papers on conversion use them, whatever the cost model.
_PAPER_ADD, _PAPER_MULTIPLY_ADD = 0.9, 4.6
_ARITHMETIC = (
    "multiply_adds", "multiplications", "float_additions", "exponentials", "activations", "roots", "divisions",
)  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """Energy per token of a spiking network and of the dense ones it stands against; estimated, not measured.

    Attributes:
        spiking: counts of the spiking network.
        dense: counts of the dense network on the same tokens.
        levels: by site, values that a neuron can send in its window; the twin's activations there have ⌈log2⌉ bits.
        hardware: prices, and the order in which things are thought to be computed.
        rivals: further networks, whose quality was measured (``fas.energy.rivals``).
        scores: perplexities by network, of those that were measured.
    """

    spiking: Counts
    dense: Counts
    levels: Mapping[str, int]
    hardware: Hardware
    rivals: Sequence[Rival] = ()
    scores: Mapping[Network, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.spiking.online and self.hardware.order == "window":
            raise ValueError(
                "order is 'window', but online a neuron's spikes are spread over time: choose row or output"
            )

    @property
    def names(self) -> dict[Network, str]:
        """What every network is called."""
        found = dict(NAMES)
        for rival in self.rivals:
            if rival.bits is None:
                found[rival.name] = f"dense, {rival.share:.0%} of inputs skipped"
                continue
            title = f"{'best' if rival.name == BEST else 'integer'} twin, {rival.bits} bits"
            found |= {rival.name: title, rival.name + _SKIPPING: f"{title}, zeros skipped"}
        return found

    @property
    def baselines(self) -> dict[Network, Network]:
        """Dense networks, each with the spiking network in the same arithmetic that it is compared with."""
        return {
            name: BASELINES.get(name, "snn" if name == "sparse" else "snn_int8")
            for name in self.names
            if name not in ("snn", "snn_int8")
        }

    @property
    def fair(self) -> Network:
        """The twin that the spiking network has to beat: of the fewest bits, if known, and without zeros."""
        return (BEST if any(rival.name == BEST for rival in self.rivals) else "twin") + _SKIPPING

    def score(self, network: Network) -> float | None:
        """Return the perplexity of a network, None if it was not measured."""
        rival, name = self._rival(network), network.removesuffix(_SKIPPING)
        same = {"snn_int8": "snn", "twin": "snn"}.get(name, name)
        return self.scores.get(same) if rival is None else rival.score

    def _rival(self, network: Network) -> Rival | None:
        return next((rival for rival in self.rivals if rival.name == network.removesuffix(_SKIPPING)), None)

    @property
    def prices(self) -> Prices:
        """The cost model."""
        return self.hardware.prices

    @property
    def activation_bits(self) -> int:
        """Bits of an activation of the integer twin, where it has the most."""
        return max(map(bits, self.levels.values()), default=0)

    def spikes_per_neuron(self, phase: Phase) -> float:
        """Mean spikes of a neuron over the whole window."""
        total = self.spiking.total(phase)
        return total.spikes / max(1, total.windows)

    def bill(self, phase: Phase, network: Network) -> list[Line]:
        """Return every item of a network, per token."""
        spikes = network in ("snn", "snn_int8")
        lines = self._spiking(phase, network) if spikes else self._dense(phase, network)
        tokens = (self.spiking if spikes else self.dense).tokens[phase]
        return [replace(line, number=line.number / tokens) for line in lines]

    def _counted(self, phase: Phase, accounting: Accounting, network: Network) -> list[Line]:
        return [line for line in self.bill(phase, network) if accounting == "memory" or not line.memory]

    def energy(self, phase: Phase, accounting: Accounting, network: Network) -> float | None:
        """Return pJ per token, without what has no price; None where an accounting does not know a network.

        ``paper``: additions of spikes and multiply-adds of the layers after them, FP32, nothing else.
        ``compute``: all arithmetic. ``memory``: with weights, membrane potentials, events and activations.
        """
        if accounting == "paper":
            return self._paper(phase, network)
        return math.fsum(line.energy for line in self._counted(phase, accounting, network))

    def unpriced(self, phase: Phase, accounting: Accounting, network: Network) -> dict[str, float]:
        """Return what the cost model has no price for, by item, per token."""
        if accounting == "paper":
            return {}
        lines = self._counted(phase, accounting, network)
        return {line.item: line.number for line in lines if line.price is None and line.number}

    def ratio(self, phase: Phase, accounting: Accounting, baseline: Network) -> float | None:
        """Return the spiking network's energy over a dense one's, None where either is not fully priced."""
        mine, theirs = self.baselines[baseline], self.energy(phase, accounting, baseline)
        own = self.energy(phase, accounting, mine)
        missing = self.unpriced(phase, accounting, mine) or self.unpriced(phase, accounting, baseline)
        return None if missing or own is None or not theirs else own / theirs

    def break_even(self, phase: Phase, accounting: Accounting, baseline: Network) -> float | None:
        """Return the spikes per neuron and window at which the spiking network takes as much as a dense one.

        All sites are thought to fire more or less by one factor; whatever spikes cause follows in proportion.
        What both networks have in common needs no price.

        Returns:
            Zero or less if a network without any spike takes as much already, None where prices are missing.
        """
        mine = self.baselines[baseline]
        if accounting == "paper":
            own, theirs = self._paper(phase, mine), self._paper(phase, baseline)
            return self.spikes_per_neuron(phase) * theirs / own if own and theirs is not None else None
        if self.unpriced(phase, accounting, mine) != self.unpriced(phase, accounting, baseline):
            return None
        lines = self._counted(phase, accounting, mine)
        falling = math.fsum(line.energy for line in lines if line.scales)
        fixed = math.fsum(line.energy for line in lines if not line.scales)
        theirs = self.energy(phase, accounting, baseline)
        if not falling or theirs is None:
            return None
        return self.spikes_per_neuron(phase) * (theirs - fixed) / falling

    def measurements(self, **conditions: Any) -> Iterator[Measurement]:
        """Yield energies, ratios and break-even points as rows of origin ``estimated``."""
        about = {**conditions, **self.hardware.conditions}
        for phase in self.spiking.phases:
            for accounting in ACCOUNTINGS:
                stated = {**about, "phase": phase, "accounting": accounting, "tokens": self.spiking.tokens[phase]}
                stated["spikes_per_neuron"] = self.spikes_per_neuron(phase)
                for network in self.names:
                    value = self.energy(phase, accounting, network)
                    if value is not None:
                        missing = sorted(self.unpriced(phase, accounting, network))
                        row = {**stated, "energy_of": network, "unpriced": missing, **self._measured(network)}
                        yield Measurement("energy", value, "pJ/token", "estimated", row)
                for baseline in self.baselines:
                    for name, value, unit in (
                        ("energy_ratio", self.ratio(phase, accounting, baseline), "1"),
                        ("break_even", self.break_even(phase, accounting, baseline), "spikes/neuron"),
                    ):
                        if value is not None:
                            row = {**stated, "baseline": baseline, **self._measured(baseline)}
                            yield Measurement(name, value, unit, "estimated", row)

    def _measured(self, network: Network) -> dict[str, Any]:
        """Return what was measured of a network, as conditions."""
        rival, value = self._rival(network), self.score(network)
        about = {} if rival is None else {"bits": rival.bits, "share": rival.share}
        return {name: found for name, found in {**about, "perplexity": value}.items() if found is not None}

    def _paper(self, phase: Phase, network: Network) -> float | None:
        places = [found for (of, _), found in self.spiking.places.items() if of == phase and found.events]
        tokens = self.spiking.tokens[phase]
        if network == "snn":
            # An event of a graded code is as many spikes as it is worth.
            return _PAPER_ADD * math.fsum(f.synaptic * f.spikes / f.events for f in places) / tokens
        if network == "ann":
            return _PAPER_MULTIPLY_ADD * self.spiking.total(phase).dense_multiply_adds / tokens
        return None

    def _spiking(self, phase: Phase, network: Network) -> list[Line]:
        places = self.spiking.of(phase)
        own, rest = _split(places)
        graded = {path: found.graded_multiply_adds for path, found in places.items()}
        # What goes into stored keys and values, and out of gated populations, is one sum for each neuron.
        once = sum(f.nonzero_multiply_adds if f.dense_multiply_adds else f.synaptic for f in places.values())
        widths = {path: bits(self.levels.get(path, 1)) for path in graded}
        return self.hardware.spiking(own, rest, _mean(widths, graded), once, integer=network == "snn_int8")

    def _dense(self, phase: Phase, network: Network) -> list[Line]:
        name, skips = network.removesuffix(_SKIPPING), network.endswith(_SKIPPING) or network == "sparse"
        rival, integer = self._rival(network), "twin" in name
        found_by_it = {} if rival is None else rival.counts.of(phase)
        dense, spiking = self.dense.of(phase), self.spiking.of(phase)
        sites = {path: found for path, found in (spiking if integer else dense).items() if path in self.levels}
        own, rest = _split(dense)
        outputs = own.outputs
        if integer:
            # The twin computes with integers what spikes drive, the products of attention among it, and has the
            # offsets of queries too.
            added = [found for path, found in sites.items() if path not in dense and found.dense_multiply_adds]
            moved, delivered = (sum(getattr(f, name) for f in added) for name in ("dense_multiply_adds", "outputs"))
            outputs += delivered
            offsets = sum(found.multiply_adds for found in sites.values())
            rest = replace(
                rest, multiply_adds=rest.multiply_adds - moved + offsets, weight_words=rest.weight_words - moved,
                weight_words_time=rest.weight_words_time - moved, outputs=rest.outputs - delivered,
            )  # fmt: skip
        numbers, widths, reread, sent = dict[str, int](), dict[str, int](), 0, 0
        for path, found in sites.items():
            own_bits = bits(self.levels[path]) if rival is None or rival.bits is None else rival.bits
            widths[path] = width = own_bits if integer else self.hardware.width
            number = found.dense_multiply_adds
            some = found_by_it.get(path, found).nonzero_multiply_adds
            numbers[path] = some if skips else number
            # All of them, or those that are not zero behind one bit for each.
            reread += min(number * width, number + some * width) if skips else number * width
            sent += found.windows * width
        executed = sum(numbers.values())
        words = own.weight_words_pass if self.hardware.reuse == "pass" else executed
        mean = _mean(widths, numbers)
        windows = sum(found.windows for found in sites.values())
        return self.hardware.dense(Work(executed, mean, words, windows, sent, outputs, reread), rest, integer=integer)


def estimate_energy(
    model: Any,
    batches: Sequence[Mapping[str, Tensor]],
    *,
    new_tokens: int = 0,
    prices: str | Path | Prices = "45nm",
    reuse: Reuse = "time",
    order: Order = "row",
    precision: Precision = "fp32",
    accumulator: Accumulator = 32,
    score: Callable[[], float] | None = None,
    calibration: Batches = (),
    progress: Progress | None = None,
) -> Estimate:
    """Run a converted model, count what it does, and estimate what that would cost.

    The spiking network and the dense one inside it run on the same batches.

    Args:
        model: a converted model; its settings (time steps, schedule, execution) hold.
        batches: inputs of its forward.
        new_tokens: tokens to generate after each batch: adds the phase ``decode``.
        prices: cost model, by name, as a file, or read already.
        reuse: how long a weight stays where it is used: ``none``, every operation fetches it; ``time``, for all
            steps of a position; ``pass``, for all positions of one forward pass, the whole prompt.
        order: ``row``, ``window`` or ``output``: how sums are made, so what is read again (``energy.bill.Hardware``).
        precision: of the dense network and of the spiking one beside it.
        accumulator: bits of the integer networks' accumulators and membrane potentials.
        score: gives the perplexity of the network that the model is set to; then rivals are measured, which reach that
            of the spiking network (``measure_rivals``).
        calibration: batches of the data that calibrated the model, for the rivals' thresholds; ``batches`` if none.
        progress: called with batches done and in all, of each network.

    Returns:
        The estimate with the counts that it is made of.

    Raises:
        ValueError: a model that is not converted, no batches, unknown prices, reuse, order, precision or accumulator.
        DataError: a file that is not a cost model.

    Example:
        >>> found = fas.estimate_energy(model, batches)  # doctest: +SKIP
        >>> found.break_even("prefill", "memory", "twin")  # doctest: +SKIP
        0.31
    """
    if not batches:
        raise ValueError("no batches to run on: pass at least one input of the model's forward")
    cost = prices if isinstance(prices, Prices) else load_prices(prices)
    hardware = Hardware(cost, reuse, order, precision, accumulator)
    counts = count_both(model, batches, new_tokens=new_tokens, progress=progress)
    found = Estimate(*counts, levels_of(model), hardware)
    if score is None:
        return found
    scores, rivals = measure_rivals(
        model, score, batches, calibration or batches, new_tokens=new_tokens, progress=progress
    )
    return replace(found, rivals=rivals, scores=scores)


def count_both(
    model: Any, batches: Sequence[Mapping[str, Tensor]], *, new_tokens: int = 0, progress: Progress | None = None
) -> tuple[Counts, Counts]:
    """Return the counts of the spiking network and of the dense one on the same batches (``estimate_energy``)."""
    spiking = counts_of(model, batches, new_tokens=new_tokens, progress=progress)
    return spiking, counts_of(model, batches, "ann", new_tokens=new_tokens, progress=progress)


def levels_of(model: Any) -> dict[str, int]:
    """Return by site how many values a neuron of a converted model can send in its window, zero included."""
    return {path: found.neuron.levels(model.timesteps) for path, found in populations(model).items()}


def _mean(widths: Mapping[str, int], numbers: Mapping[str, int]) -> float:
    """Return the bits of an activation, in the mean over so many uses at each place."""
    return sum(number * widths[path] for path, number in numbers.items()) / max(1, sum(numbers.values()))


def _split(places: Mapping[str, Operations]) -> tuple[Operations, Operations]:
    """Return the operations of the neurons, or of the layers after them, and the others.

    Arithmetic that no spike drives is of the others wherever it happens, as an activation that a site replaces is.
    """
    own, rest = Operations(), Operations()
    for found in places.values():
        (own if found.windows or found.dense_multiply_adds else rest).__iadd__(found)
    for name in _ARITHMETIC:
        setattr(rest, name, getattr(rest, name) + getattr(own, name))
    return own, rest
