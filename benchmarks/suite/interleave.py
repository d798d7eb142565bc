"""Timing several programs in turn, so that whatever else the machine does falls on all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles

import torch

# A sample shorter than this is mostly noise of the clock and the scheduler: more calls go into it.
_SHORTEST = 0.02  # s
# A first call beyond this is no short program, whatever it paid for.
_SLOW = 1.0  # s

Prepare = Callable[[], Callable[[], object]]
"""Makes one call ready, untimed, and returns what is to be timed."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one call, round by round.

    Attributes:
        seconds: one sample per round, in the order of the rounds.
        calls: calls that a sample is the mean of.
    """

    seconds: tuple[float, ...]
    calls: int

    @property
    def median(self) -> float:
        """Median over the rounds, s."""
        return median(self.seconds)

    @property
    def interquartile(self) -> tuple[float, float]:
        """First and third quartile over the rounds, s."""
        return quartiles(self.seconds)

    def speed(self, reference: Timing) -> tuple[float, float, float]:
        """Return how many times as fast as another program: median and quartiles of the rounds' ratios.

        Samples of the same round lie beside each other in time, so a slow spell of the machine cancels.
        """
        ratios = [other / own for own, other in zip(self.seconds, reference.seconds, strict=False)]
        return median(ratios), *quartiles(ratios)


def quartiles(values: tuple[float, ...] | list[float]) -> tuple[float, float]:
    """Return the first and the third quartile, values inside the range of the sample."""
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = quantiles(values, n=4, method="inclusive")
    return low, high


def interleaved(
    programs: Mapping[str, Prepare],
    *,
    rounds: int,
    patience: float = 10.0,
    progress: Callable[[str, int, int], None] | None = None,
    synchronise: Callable[[], None] = lambda: None,
) -> dict[str, Timing]:
    """Time programs in turn: every round runs each of them once, starting with another one each time.

    Every program is warmed up by one call, which also says how many calls make a sample.

    Args:
        programs: what to time, by name; the first is the reference of ``Timing.speed`` as a rule.
        rounds: samples of each program.
        patience: seconds after which a program other than the first takes part no longer, once it has two
            samples; one sample if a single call takes that long.
        progress: told the name of what runs, rounds done and rounds in all.
        synchronise: waits until the device has finished.

    Raises:
        ValueError: no program, or no round.
    """
    if not programs or rounds < 1:
        raise ValueError(f"nothing to time: {len(programs)} programs in {rounds} rounds; give at least one of each")

    def once(prepare: Prepare) -> float:
        run = prepare()
        synchronise()
        began = time.perf_counter()
        run()
        synchronise()
        return time.perf_counter() - began

    names = list(programs)
    samples: dict[str, list[float]] = {name: [] for name in names}
    spent = dict.fromkeys(names, 0.0)
    calls, fewest = {}, {}
    with torch.inference_mode():
        for name in names:
            if progress is not None:
                progress(f"{name}, warming up", 0, rounds)
            # The first call pays for allocations; the second says what a call takes, where that matters.
            first = once(programs[name])
            quick = once(programs[name]) if first < _SLOW else first
            calls[name] = max(1, round(_SHORTEST / max(quick, 1e-6)))
            fewest[name] = 1 if first > patience else 2
        for turn in range(rounds):
            start = turn % len(names)
            for name in names[start:] + names[:start]:
                if name != names[0] and spent[name] > patience and len(samples[name]) >= fewest[name]:
                    continue
                if progress is not None:
                    progress(name, turn, rounds)
                taken = [once(programs[name]) for _ in range(calls[name])]
                spent[name] += sum(taken)
                samples[name].append(sum(taken) / len(taken))
    return {name: Timing(tuple(samples[name]), calls[name]) for name in names}
