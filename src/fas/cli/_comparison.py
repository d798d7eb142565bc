"""Several conversions of one dense model, measured in turn and shown in one table."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fas.cli._calibration import conditions
from fas.cli._data import calibration_batches, default_data
from fas.cli._measured import Advance, Scores, measure
from fas.cli._output import Output
from fas.types import Method


@dataclass(frozen=True)
class Plan:
    """One conversion to measure.

    Attributes:
        name: what the row is called: the method, or the part of it that is switched on.
        method: the recipe.
        losses: whether thresholds are trained by the FAS loss behind it.
    """

    name: str
    method: Method
    losses: bool = False


@dataclass(frozen=True)
class Row:
    """One measured conversion.

    Attributes:
        name: of the plan.
        coverage: what spikes.
        neuron: code of the neurons.
        timesteps: T.
        levels: values that a neuron can send in its window.
        score: name of the chief score.
        value: its value for the spiking network.
        relation: how it stands to the dense model's (``relation_title``).
        spikes: per neuron over the whole window.
        seconds: for conversion and calibration.
    """

    name: str
    coverage: str
    neuron: str
    timesteps: int
    levels: int
    score: str
    value: float
    relation: float
    spikes: float | None
    seconds: float

    @property
    def kind(self) -> str:
        """What a line in a plot stands for: everything but T."""
        return f"{self.name}, {self.coverage}, {self.neuron}"

    @property
    def relation_title(self) -> str:
        """Return a ratio of perplexities, a difference of other scores."""
        return "× ANN" if self.score == "perplexity" else "− ANN"


def compare_plans(
    output: Output,
    model: str,
    plans: Sequence[Plan],
    *,
    data: str | None,
    test_data: str | None,
    tokens: int,
    test_tokens: int,
    window: int | None,
    batch_size: int,
    device: str,
    seed: int,
    title: str,
) -> list[Row]:
    """Convert one dense model by several plans and show what each of them costs and keeps.

    Args:
        output: of the command.
        model: name of the dense model, loaded once.
        plans: measured in turn on the same data.
        data: for calibration; the embedded model brings its own.
        test_data: for the measurement, by default the ``test`` part of ``data``.
        tokens: for calibration.
        test_tokens: for the measurement.
        window: tokens per window.
        batch_size: windows or rows per call.
        device: where to compute.
        seed: of the choice of calibration windows.
        title: of the table.

    Raises:
        ValueError: a model that is converted already; a file named for both calibration and measurement.
        FASError: what loading, reading or converting raises.
    """
    from fas.cli._models import load
    from fas.conversion import convert, revert
    from fas.stages.align import Align

    loaded = load(model, device)
    if loaded.converted:
        raise ValueError(f"{model} is converted already: name the dense model that it was made of")
    source = default_data(loaded, data)
    if test_data is None and Path(source).is_file():
        raise ValueError(f"{source} would be both calibrated and measured on: name other data with --test-data")
    scores = Scores(loaded, test_data or source, limit=test_tokens, window=window, batch_size=batch_size)
    batches = calibration_batches(loaded, source, window=window, limit=tokens, batch_size=batch_size, seed=seed)
    reference, _ = measure(output, loaded, scores)
    chief = next(iter(reference))
    rows: list[Row] = []
    for done, plan in enumerate(plans):
        output.remark(f"{done + 1} of {len(plans)}: {plan.name}, T = {plan.method.timesteps}")
        began = time.perf_counter()
        with output.progress("calibrating") as advance:
            told = _told(advance)
            convert(loaded.model, plan.method, calibration=batches, progress=told)
            if plan.losses:
                loaded.model.records.append(Align(seed=seed).run(loaded.model, batches, told))
        seconds = time.perf_counter() - began
        found, spikes = measure(output, loaded, scores, plan=plan.name)
        about = conditions(loaded)
        output.measure("conversion_time", seconds, "s", **about, plan=plan.name)
        value = found[chief]
        relation = value / reference[chief] if chief == "perplexity" else value - reference[chief]
        rows.append(
            Row(
                plan.name,
                about["coverage"],
                about["neuron"],
                about["timesteps"],
                about["levels"],
                chief,
                value,
                relation,
                spikes,
                seconds,
            )
        )
        revert(loaded.model)
    output.table(
        f"{title} {model}, {scores.source}; dense: {chief} {reference[chief]:.4g}",
        ["plan", "coverage", "neuron", "T", "levels", chief, rows[0].relation_title, "spikes per neuron", "s"],
        [[r.name, r.coverage, r.neuron, r.timesteps, r.levels, r.value, r.relation, r.spikes, r.seconds] for r in rows],
    )
    return rows


def _told(advance: Advance) -> Callable[[str, int, int], None]:
    return lambda _, done, total: advance(done, total)
