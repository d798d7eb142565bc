"""What counted operations would cost: accountings, the dense networks to compare with, and the break-even."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor

from fas.energy.count import count_operations
from fas.energy.emission import bits
from fas.energy.operations import Counts, Operations, Phase, Reuse
from fas.energy.prices import Prices, load_prices
from fas.errors import FASError
from fas.surgery.probe import evaluating
from fas.types import Measurement, Progress

Accounting = Literal["paper", "compute", "memory"]
Network = Literal["snn", "snn_int8", "ann", "ann_zeros_skipped", "twin", "twin_zeros_skipped"]
Precision = Literal["fp32", "fp16"]

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
# Horowitz 2014, as papers on conversion use them, whatever the cost model.
_PAPER_ADD, _PAPER_MULTIPLY_ADD = 0.9, 4.6
_WEIGHT_BITS = {"fp32": 32, "fp16": 16, "int8": 8}
# Accumulators and membrane potentials of an integer network.
_STATE_BITS = 32


@dataclass(frozen=True)
class Line:
    """One item of a bill, per token.

    Attributes:
        item: what was done.
        number: how often.
        price: pJ each; None where the cost model does not say.
        memory: whether the item is memory or transport and not computation.
        scales: whether there is less of it when neurons fire less.
    """

    item: str
    number: float
    price: float | None
    memory: bool = False
    scales: bool = False

    @property
    def energy(self) -> float:
        """In pJ per token; nothing for what has no price."""
        return 0.0 if self.price is None else self.number * self.price


@dataclass(frozen=True)
class Estimate:
    """Energy per token of a spiking network and of the dense ones it stands against; estimated, not measured.

    Attributes:
        spiking: counts of the spiking network.
        dense: counts of the dense network on the same tokens.
        levels: values that a neuron can send in its window; the integer twin's activations have ⌈log2⌉ bits.
        prices: cost model.
        reuse: how long a weight stays where it is used.
        precision: of the dense network and of the spiking one beside it.
    """

    spiking: Counts
    dense: Counts
    levels: int
    prices: Prices
    reuse: Reuse = "time"
    precision: Precision = "fp32"

    @property
    def activation_bits(self) -> int:
        """Bits of an activation of the integer twin."""
        return bits(self.levels)

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

        ``paper``: additions of spikes and multiply-adds of the layers behind them, FP32, nothing else.
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
        mine, theirs = BASELINES[baseline], self.energy(phase, accounting, baseline)
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
        mine = BASELINES[baseline]
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
        """Yield energies, ratios and break-even points as rows of origin ``estimated``.

        Args:
            conditions: what to state beside each row.
        """
        about = {**conditions, "prices": self.prices.name, "reuse": self.reuse, "precision": self.precision}
        for phase in self.spiking.phases:
            for accounting in ACCOUNTINGS:
                stated = {**about, "phase": phase, "accounting": accounting, "tokens": self.spiking.tokens[phase]}
                for network in get_args(Network):
                    value = self.energy(phase, accounting, network)
                    if value is not None:
                        missing = sorted(self.unpriced(phase, accounting, network))
                        row = {**stated, "energy_of": network, "unpriced": missing}
                        yield Measurement("energy", value, "pJ/token", "estimated", row)
                for baseline in BASELINES:
                    for name, value, unit in (
                        ("energy_ratio", self.ratio(phase, accounting, baseline), "1"),
                        ("break_even", self.break_even(phase, accounting, baseline), "spikes/neuron"),
                    ):
                        if value is not None:
                            yield Measurement(name, value, unit, "estimated", {**stated, "baseline": baseline})

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
        integer, price = network == "snn_int8", self.prices.get
        add = price("int32_add") if integer else price(f"{self.precision}_add")
        own, rest = _split(self.spiking, phase)
        operation, update, event = price("synaptic_operation"), price("neuron_update"), price("event")
        weight = self._bits(price("weight_read"), _WEIGHT_BITS["int8" if integer else self.precision])
        if operation is not None:
            weight = 0.0
        state = _STATE_BITS if integer else _WEIGHT_BITS[self.precision]
        transported = (own.event_bits, price("event_transport")) if event is None else (own.events, event)
        product, sums = self._multiply_add(integer), own.additions + own.shift_additions
        stored = self._bits(price("state_access"), 2 * state) if update is None else 0.0
        return [
            Line("additions", sums, add if operation is None else operation, scales=True),
            Line(
                "graded multiply-adds",
                own.graded_multiply_adds,
                product if operation is None else operation,
                scales=True,
            ),
            Line("membrane updates", own.membrane_updates, self._bits(add, 2) if update is None else update),
            # An update that has one price for all it does resets as well.
            Line("resets", own.events, add if update is None else 0.0, scales=True),
            Line("weights", own.words(self.reuse), weight, memory=True, scales=True),
            Line("membrane potentials", own.membrane_updates, stored, memory=True),
            Line("events", *transported, memory=True, scales=True),
            *self._remainder(rest),
        ]

    def _dense(self, phase: Phase, network: Network) -> list[Line]:
        integer, skips = network.startswith("twin"), network.endswith("zeros_skipped")
        own, rest = _split(self.dense, phase)
        number: float = own.dense_multiply_adds
        useful: float = own.nonzero_multiply_adds
        words: float = own.words(self.reuse)
        windows: float = own.windows
        if integer:
            # The twin computes with integers what spikes drive, the products of attention among it.
            sites, _ = _split(self.spiking, phase)
            share = self.dense.tokens[phase] / self.spiking.tokens[phase]
            moved = sites.dense_multiply_adds * share - number
            number, useful = number + moved, sites.nonzero_multiply_adds * share
            windows = sites.windows * share
            rest = _without(rest, moved)
            words += moved if self.reuse != "pass" else 0
        multiply_adds = useful if skips else number
        if skips and self.reuse != "pass":
            words = multiply_adds
        width = self.activation_bits if integer else _WEIGHT_BITS[self.precision]
        weight = _WEIGHT_BITS["int8" if integer else self.precision]
        return [
            Line("multiply-adds behind the sites", multiply_adds, self._multiply_add(integer)),
            Line("weights", words, self._bits(self.prices.get("weight_read"), weight), memory=True),
            Line("activations", windows, self._bits(self.prices.get("activation_transport"), width), memory=True),
            *self._remainder(rest),
        ]

    def _remainder(self, rest: Operations) -> list[Line]:
        """Return what every network computes on floats, in the precision of the dense one."""
        price, kind = self.prices.get, self.precision
        weight = self._bits(price("weight_read"), _WEIGHT_BITS[kind])
        return [
            Line("other multiply-adds", rest.multiply_adds, self._multiply_add(False)),
            Line("multiplications", rest.multiplications, price(f"{kind}_multiply")),
            Line("float additions", rest.float_additions, price(f"{kind}_add")),
            Line("evaluations", rest.evaluations, price("evaluation")),
            Line("other operands", rest.words(self.reuse), weight, memory=True),
        ]

    def _multiply_add(self, integer: bool) -> float | None:
        """Return the price of w·a + v."""
        if not integer:
            return self.prices.get(f"{self.precision}_multiply", f"{self.precision}_add")
        product, add = self.prices.get("int8_multiply"), self.prices.get("int32_add")
        # An 8-bit weight times b bits takes b/8 of an 8-bit product: an array multiplier has a row per bit.
        return None if product is None or add is None else product * self.activation_bits / 8 + add

    @staticmethod
    def _bits(price: float | None, number: int) -> float | None:
        return None if price is None else price * number


def estimate_energy(
    model: Any,
    batches: Sequence[Mapping[str, Tensor]],
    *,
    new_tokens: int = 0,
    prices: str | Path | Prices = "45nm",
    reuse: Reuse = "time",
    precision: Precision = "fp32",
    progress: Progress | None = None,
) -> Estimate:
    """Run a converted model, count what it does, and estimate what that would cost.

    The spiking network and the dense one inside it run on the same batches.

    Args:
        model: a converted model; its settings (time steps, schedule, execution) hold.
        batches: inputs of its forward.
        new_tokens: tokens to generate behind each batch: adds the phase ``decode``.
        prices: cost model, by name, as a file, or read already.
        reuse: how long a weight stays where it is used: ``none``, every operation fetches it; ``time``, for all
            steps of a position; ``pass``, for all positions of one forward pass, the whole prompt.
        precision: of the dense network and of the spiking one beside it.
        progress: called with batches done and in all, of each network.

    Returns:
        The estimate with the counts that it is made of.

    Raises:
        ValueError: a model that is not converted, no batches, unknown prices, reuse or precision.
        DataError: a file that is no cost model.

    Example:
        >>> found = fas.estimate_energy(model, batches)  # doctest: +SKIP
        >>> found.break_even("prefill", "memory", "twin")  # doctest: +SKIP
        0.31
    """
    for name, value, choices in (("reuse", reuse, get_args(Reuse)), ("precision", precision, get_args(Precision))):
        if value not in choices:
            raise ValueError(f"{name} is {value!r}; choose one of {', '.join(choices)}")
    if not batches:
        raise ValueError("no batches to run on: pass at least one input of the model's forward")
    model_prices = prices if isinstance(prices, Prices) else load_prices(prices)
    spiking, dense = count_both(model, batches, new_tokens=new_tokens, progress=progress)
    return Estimate(spiking, dense, levels_of(model), model_prices, reuse, precision)


def count_both(
    model: Any, batches: Sequence[Mapping[str, Tensor]], *, new_tokens: int = 0, progress: Progress | None = None
) -> tuple[Counts, Counts]:
    """Return the counts of the spiking network and of the dense one on the same batches (``estimate_energy``)."""
    spiking = counts_of(model, batches, new_tokens=new_tokens, progress=progress)
    return spiking, counts_of(model, batches, "ann", new_tokens=new_tokens, progress=progress)


def counts_of(
    model: Any,
    batches: Sequence[Mapping[str, Tensor]],
    network: str = "snn",
    *,
    new_tokens: int = 0,
    progress: Progress | None = None,
) -> Counts:
    """Return the counts of one network of a converted model on some batches (``estimate_energy``)."""
    with count_operations(model) as counts, model.simulation.using(network=network), evaluating(model):
        for i, batch in enumerate(batches):
            _run(model, batch, new_tokens)
            if progress is not None:
                progress(f"counting operations, {network}", i + 1, len(batches))
    if counts.uncounted:
        missing = ", ".join(f"{calls} calls of {name}" for name, calls in counts.uncounted.items())
        raise FASError(
            f"{missing} in {type(model).__name__} cannot be counted, and a sum without them would be too small: "
            "no energy is estimated for this model; fas.count_operations counts what is known"
        )
    return counts


def levels_of(model: Any) -> int:
    """Return how many values a neuron of a converted model can send in its window, zero included."""
    found: int = model.fas_config.levels_after(model.timesteps)
    return found


def _run(model: Any, batch: Mapping[str, Tensor], new_tokens: int) -> None:
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    if not new_tokens:
        model(**inputs)
        return
    # As many tokens from every network, whatever it would like to say.
    length = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
    end = model.config.eos_token_id
    model.generate(**inputs, **length, do_sample=False, pad_token_id=end if isinstance(end, int) else 0)


def _split(counts: Counts, phase: Phase) -> tuple[Operations, Operations]:
    """Return the operations of the sites, or of the layers behind them, and the others."""
    own, rest = Operations(), Operations()
    for (of, _), found in counts.places.items():
        if of == phase:
            behind = found.windows or found.dense_multiply_adds
            (own if behind else rest).__iadd__(found)
    # An activation that a site replaces is evaluated in the dense network, in the same place.
    rest.activations, own.activations = rest.activations + own.activations, 0
    return own, rest


def _without(rest: Operations, number: float) -> Operations:
    """Return the remainder without some multiply-adds, and what they would have read."""
    names = ("multiply_adds", "weight_words", "weight_words_time")
    return replace(rest, **{name: getattr(rest, name) - round(number) for name in names})
