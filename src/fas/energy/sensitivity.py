"""What a verdict hangs on: prices that are halved and doubled, other choices, and the layers apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from fas.energy.estimate import Accounting, Estimate, Network
from fas.energy.operations import Counts, Phase
from fas.surgery.trace import starred
from fas.types import Measurement


@dataclass(frozen=True)
class Swing:
    """What one change does to the energy of the spiking network over that of a dense one.

    Attributes:
        name: of the constant, or of the choice.
        ratio: as things are.
        half: if the constant were half as large; None for a choice.
        double: if it were twice as large; for a choice, if that were made.
    """

    name: str
    ratio: float
    half: float | None
    double: float

    @property
    def width(self) -> float:
        """How far apart the ends are."""
        ends = [self.ratio, self.double, *(() if self.half is None else (self.half,))]
        return max(ends) - min(ends)


def sensitivity(found: Estimate, phase: Phase, accounting: Accounting, baseline: Network) -> list[Swing]:
    """Return the swings of a ratio, the widest first: of each constant, and of each other choice that can be made.

    Constants that change nothing are left out; so is everything where the ratio has no price.
    """
    ratio = found.ratio(phase, accounting, baseline)
    if ratio is None:
        return []

    def changed(**hardware: Any) -> float:
        then = replace(found, hardware=replace(found.hardware, **hardware)).ratio(phase, accounting, baseline)
        return ratio if then is None else then

    def scaled(name: str, factor: float) -> float:
        constants = dict(found.prices.constants)
        constants[name] = replace(constants[name], value=constants[name].value * factor)
        return changed(prices=replace(found.prices, constants=constants))

    swings = [Swing(name, ratio, scaled(name, 0.5), scaled(name, 2.0)) for name in found.prices.constants]
    choices: dict[str, tuple[Any, ...]] = {
        "order": ("row", "output") if found.spiking.online else ("row", "window", "output"),
        "reuse": ("none", "time", "pass"), "accumulator": (8, 16, 32),
    }  # fmt: skip
    swings += [
        Swing(f"{name} {value}", ratio, None, changed(**{name: value}))
        for name, values in choices.items()
        for value in values
        if value != getattr(found.hardware, name)
    ]
    return sorted((swing for swing in swings if swing.width > 1e-9 * ratio), key=lambda swing: -swing.width)


def kinds(found: Estimate) -> dict[str, Estimate]:
    """Return the estimate of each kind of site alone, by its dotted name with ``*`` for the number of the block."""
    by_kind: dict[str, set[str]] = {}
    for path in found.levels:
        by_kind.setdefault(starred(path), set()).add(path)
    return {kind: _part(found, paths) for kind, paths in by_kind.items()}


def _part(found: Estimate, paths: set[str]) -> Estimate:
    def of(counts: Counts) -> Counts:
        return replace(counts, places={key: value for key, value in counts.places.items() if key[1] in paths})

    rivals = [replace(rival, counts=of(rival.counts)) for rival in found.rivals]
    levels = {path: levels for path, levels in found.levels.items() if path in paths}
    return replace(found, spiking=of(found.spiking), dense=of(found.dense), levels=levels, rivals=rivals)


def measurements(found: Estimate, **conditions: Any) -> Iterator[Measurement]:
    """Yield the swings of the fair ratio, and break-even points by kind of site, as rows of origin ``estimated``."""
    about = {**conditions, **found.hardware.conditions, "baseline": found.fair}
    accountings: tuple[Accounting, ...] = ("compute", "memory")
    for phase in found.spiking.phases:
        for accounting in accountings:
            stated = {**about, "phase": phase, "accounting": accounting}
            for swing in sensitivity(found, phase, accounting, found.fair):
                for factor, value in ((0.5, swing.half), (2.0, swing.double)):
                    if value is not None:
                        change = {"changed": swing.name, **({} if swing.half is None else {"factor": factor})}
                        yield Measurement("energy_ratio", value, "1", "estimated", {**stated, **change})
            for kind, part in kinds(found).items():
                point = part.break_even(phase, accounting, found.fair)
                if point is not None:
                    row = {**stated, "kind": kind, "fires": part.spikes_per_neuron(phase)}
                    yield Measurement("break_even", point, "spikes/neuron", "estimated", row)
