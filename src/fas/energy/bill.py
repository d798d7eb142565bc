"""What counted operations cost, item by item: one bill for a spiking network, one for a dense or an integer one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from fas.checks import check_choice
from fas.energy.operations import Operations, Order, Reuse
from fas.energy.prices import Prices

Precision = Literal["fp32", "fp16"]
Accumulator = Literal[8, 16, 32]
_CHOICES = {"reuse": Reuse, "order": Order, "precision": Precision, "accumulator": Accumulator}


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
class Work:
    """What a dense network does after the sites, over all tokens.

    Attributes:
        multiply_adds: that are executed.
        bits: of an activation, the mean over the multiply-adds.
        words: weights fetched.
        windows: activations.
        activation_bits: of all of these.
        outputs: sums that are delivered.
        reread_bits: of the activations that every output reads again (order ``output``).
    """

    multiply_adds: float
    bits: float
    words: float
    windows: float
    activation_bits: float
    outputs: float
    reread_bits: float


@dataclass(frozen=True)
class Hardware:
    """What operations are priced by: a cost model, and in which order and with which words it is thought to compute.

    Attributes:
        prices: cost model.
        reuse: how long a weight stays where it is used.
        order: ``row``: an input adds its row of weights to all accumulators, each of which is read and written for
            every addition; ``window``: the same, but a neuron's spikes of a window are added up in a register before
            the accumulator, as a multiplier that works digit by digit would; ``output``: one accumulator at a time
            stands in a register and is written once, and the inputs are read again for each. The same for all networks.
        precision: of the dense network and of the spiking one beside it.
        accumulator: bits of accumulators, currents and membrane potentials of integer networks.

    Source: the orders are the input- and the output-stationary dataflow of Sze et al. 2017 (Proc. IEEE 105).
    """

    prices: Prices
    reuse: Reuse = "time"
    order: Order = "row"
    precision: Precision = "fp32"
    accumulator: Accumulator = 32

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            check_choice(name, getattr(self, name), get_args(choices))

    def spiking(self, own: Operations, rest: Operations, bits: float, once: int, *, integer: bool) -> list[Line]:
        """Return the bill of a spiking network.

        Args:
            own: operations of the sites.
            rest: all others.
            bits: of a graded spike's integer, as an activation of the twin has.
            once: additions if a neuron's spikes of a window were one.
            integer: INT8 weights and integer accumulators, or all in the precision of the dense network.
        """
        price, state, add = self.prices.get, self._state(integer), self.addition(integer=integer)
        operation, update, event = price("synaptic_operation"), price("neuron_update"), price("event")
        # What has one price for all it does fetches its weight and accumulates, or keeps its state and resets.
        weight, access = self._read("weight_read", self._weight(integer)), self._read("state_access")
        if operation is not None:
            weight = 0.0
        stored = access if update is None else 0.0
        transported = (own.event_bits, price("event_transport")) if event is None else (own.events, event)
        sums, product = own.additions + own.shift_additions, self.multiply_add(bits, integer=integer)
        lines = [
            Line("additions", sums, add if operation is None else operation, scales=True),
            Line(
                "graded multiply-adds",
                own.graded_multiply_adds,
                product if operation is None else operation,
                scales=True,
            ),
            Line("membrane updates", own.membrane_updates, _times(add, 2) if update is None else update),
            Line("resets", own.events, add if update is None else 0.0, scales=True),
            Line("weights", own.words(self.reuse), weight, memory=True, scales=True),
            Line("membrane potentials", 2 * state * own.membrane_updates, stored, memory=True),
            Line("input currents", state * own.membrane_updates, stored, memory=True),
            Line("events", *transported, memory=True, scales=True),
        ]
        where = access if operation is None else 0.0
        if self.order != "output":
            updates = own.synaptic if self.order == "row" else once
            lines.append(Line("accumulators", 2 * state * updates, where, memory=True, scales=True))
        else:
            lines.append(Line("accumulators", state * own.outputs, where, memory=True))
            lines.append(Line("inputs read again", own.spike_bits, where, memory=True, scales=True))
            lines.append(Line("maps read again", own.map_bits, where, memory=True))
        return [*lines, *self.remainder(rest)]

    def dense(self, work: Work, rest: Operations, *, integer: bool) -> list[Line]:
        """Return the bill of a dense network, or of an integer one (``Work``), beside the rest that stays float."""
        state, access = self._state(integer), self._read("state_access")
        weight, price = self._weight(integer), self.multiply_add(work.bits, integer=integer)
        lines = [
            Line("multiply-adds after the sites", work.multiply_adds, price),
            Line("weights", work.words, self._read("weight_read", weight), memory=True),
            Line("activations", work.activation_bits, self._read("activation_transport"), memory=True),
            Line("input currents", state * work.windows, access, memory=True),
        ]
        if self.order != "output":
            lines.append(Line("accumulators", 2 * state * work.multiply_adds, access, memory=True))
        else:
            lines.append(Line("accumulators", state * work.outputs, access, memory=True))
            lines.append(Line("inputs read again", work.reread_bits, access, memory=True))
        return [*lines, *self.remainder(rest)]

    def remainder(self, rest: Operations) -> list[Line]:
        """Return what every network computes on floats, in the precision of the dense one."""
        kind, width, price = self.precision, self.width, self.prices.get
        moved = rest.weight_words + rest.outputs if self.order == "output" else 2 * rest.weight_words
        return [
            Line("other multiply-adds", rest.multiply_adds, self.multiply_add(width, integer=False)),
            Line("multiplications", rest.multiplications, price(f"{kind}_multiply")),
            Line("float additions", rest.float_additions, price(f"{kind}_add")),
            Line("evaluations", rest.evaluations, price("evaluation")),
            Line("other operands", rest.words(self.reuse), self._read("weight_read", width), memory=True),
            Line("other accumulators", width * moved, self._read("state_access"), memory=True),
        ]

    @property
    def conditions(self) -> dict[str, Any]:
        """What must be said beside an energy."""
        chosen = {name: getattr(self, name) for name in ("reuse", "order", "precision", "accumulator")}
        return {"prices": self.prices.name, **chosen}

    @property
    def width(self) -> int:
        """Bits of a float."""
        return 32 if self.precision == "fp32" else 16

    def addition(self, *, integer: bool) -> float | None:
        """Return the price of an addition to an accumulator."""
        return self.prices.get(f"int{self.accumulator}_add" if integer else f"{self.precision}_add")

    def multiply_add(self, bits: float, *, integer: bool) -> float | None:
        """Return the price of w·a + v, where an integer a has so many bits."""
        if not integer:
            return self.prices.get(f"{self.precision}_multiply", f"{self.precision}_add")
        product, add = self.prices.get("int8_multiply"), self.addition(integer=True)
        # An 8-bit weight times b bits takes b/8 of an 8-bit product: an array multiplier has a row per bit.
        return None if product is None or add is None else product * bits / 8 + add

    def _weight(self, integer: bool) -> int:
        return 8 if integer else self.width

    def _state(self, integer: bool) -> int:
        return self.accumulator if integer else self.width

    def _read(self, name: str, bits: int = 1) -> float | None:
        return _times(self.prices.get(name), bits)


def _times(price: float | None, number: float) -> float | None:
    return None if price is None else price * number
