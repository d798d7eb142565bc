"""Several conversions of one dense model, measured in turn and shown in one table."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fas.cli._calibration import conditions
from fas.cli._counted import add
from fas.cli.program.output import Output
from fas.data.for_model import Sample, calibration_batches, default_data, held_out_batches
from fas.evaluation.control import TRAINED, Training, told
from fas.evaluation.score import Scores, measure
from fas.loading import Loaded
from fas.plain_networks import inputs_of, is_plain, load_either, photographs
from fas.types import Measurement, Method

# Tokens, or images, whose operations are counted: counts per token settle quickly.
_COUNTED, _COUNTED_IMAGES = 1024, 32
_CONTROL = {"plan": "control"}


@dataclass(frozen=True)
class Plan:
    """One conversion to measure.

    Attributes:
        name: what the row is called: the method, or the part of it that is switched on.
        method: the recipe; None where it refused its own options.
        losses: whether thresholds are trained by the FAS loss behind it.
        refused: why there is no method.
        timesteps: T that was asked for.
    """

    name: str
    method: Method | None
    losses: bool = False
    refused: str | None = None
    timesteps: int | None = None


@dataclass(frozen=True)
class Row:
    """One measured conversion.

    Attributes:
        name: of the plan, ``control`` for the dense model trained on the same data.
        timesteps: T.
        coverage: what spikes.
        neuron: code of the neurons.
        levels: values that a neuron can send in its window.
        score: name of the chief score.
        value: its value for the spiking network.
        relation: how it stands to the dense model's (``relation_title``).
        spikes: per neuron over the whole window.
        floats: kinds of operations that stay float.
        seconds: for conversion and calibration.
        training: seconds of training.
        energy: pJ per token or image.
        refused: why there is nothing to show.
    """

    name: str
    timesteps: int | None
    coverage: str | None = None
    neuron: str | None = None
    levels: int | None = None
    score: str = ""
    value: float | None = None
    relation: float | None = None
    spikes: float | None = None
    floats: tuple[str, ...] = ()
    seconds: float | None = None
    training: float | None = None
    energy: float | None = None
    refused: str | None = None

    @property
    def kind(self) -> str:
        """What a line in a plot stands for: everything but T."""
        return f"{self.name}, {self.coverage}, {self.neuron}"

    @property
    def relation_title(self) -> str:
        """Return a ratio of perplexities, a difference of other scores."""
        return "× ANN" if self.score == "perplexity" else "− ANN"


@dataclass(frozen=True)
class Data:
    """What all conversions of a comparison see.

    Attributes:
        data: for calibration; the embedded model brings its own.
        test_data: for the measurement, by default the ``test`` part of ``data``.
        tokens: for calibration.
        test_tokens: for the measurement.
        window: tokens per window.
        batch_size: windows or rows per call.
        images: for calibration, of a network that reads these.
        test_images: for the measurement.
        seed: of the choice of calibration windows.
    """

    data: str | None
    test_data: str | None
    tokens: int
    test_tokens: int
    window: int | None
    batch_size: int
    images: int = 256
    test_images: int = 1000
    seed: int = 0


def compare_plans(
    output: Output,
    model: str,
    plans: Sequence[Plan],
    data: Data,
    *,
    device: str,
    title: str,
    network: Path | None = None,
    accounting: str | None = None,
    train_steps: int = 0,
) -> list[Row]:
    """Convert one dense model by several plans and show what each of them costs and keeps.

    Every plan starts from the same weights. One that refuses the model has a row that says so.

    Args:
        output: of the command.
        model: name of the dense model, loaded once.
        plans: measured in turn.
        data: on what.
        device: where to compute.
        title: of the table.
        network: Python file that loads a plain network (``load_plain``).
        accounting: of the energies; None leaves them out.
        train_steps: steps of stage 1 for the methods that have it (``TRAINED``), and for the control.

    Raises:
        ValueError: a model that is converted already; a file named for both calibration and measurement.
        FASError: what loading or reading raises.
    """
    dense = load_either(model, device, network)
    if dense.converted:
        raise ValueError(f"{model} is converted already: name the dense model that it was made of")
    source = default_data(dense, data.data)
    if data.test_data is None and Path(source).is_file():
        raise ValueError(f"{source} would be both calibrated and measured on: name other data with --test-data")
    bench = _Bench(output, dense, source, data, accounting, train_steps)
    rows = bench.run(plans)
    bench.show(rows, title)
    return rows


class _Bench:
    """One dense model with its data, on which conversions are measured."""

    def __init__(
        self, output: Output, dense: Loaded, source: str, data: Data, accounting: str | None, train_steps: int
    ) -> None:
        self.output, self.dense, self.source, self.data = output, dense, source, data
        self.accounting, self.train_steps = accounting, train_steps
        self.plain = is_plain(dense)
        self.scores = Scores(
            dense, data.test_data or source, limit=data.test_tokens, window=data.window, batch_size=data.batch_size,
            images=data.test_images,
        )  # fmt: skip
        self.batches, self.counted = self._batches()
        self.reference, _ = measure(output, dense, self.scores)
        self.chief = next(iter(self.reference))
        self.dense_energy: float | None = None
        self.training = Training(
            output, dense, source, steps=train_steps, window=data.window, batch_size=data.batch_size, seed=data.seed
        )
        self.control: Row | None = None

    def _batches(self) -> tuple[list[Any], list[Any]]:
        """Return the batches of calibration, and those whose operations are counted."""
        data = self.data
        if self.plain:
            labelled = photographs(self.dense, self.source, "train", limit=data.images, rows=64, seed=data.seed)
            first = {k: v[:_COUNTED_IMAGES] for k, v in self.scores.images[0].items()}
            return inputs_of(labelled), inputs_of([first])
        sample = Sample(data.tokens, data.window, data.batch_size, data.seed)
        batches = calibration_batches(self.dense, self.source, sample)
        if self.accounting is None:
            return batches, []
        tested = data.test_data or self.source
        return batches, held_out_batches(self.dense, tested, replace(sample, tokens=_COUNTED))

    def run(self, plans: Sequence[Plan]) -> list[Row]:
        """Measure every plan; the control comes first."""
        from fas.errors import FASError

        rows: list[Row] = []
        for done, plan in enumerate(plans):
            self.output.remark(f"{done + 1} of {len(plans)}: {plan.name}, T = {plan.timesteps}")
            reason = plan.refused
            if plan.method is not None:
                try:
                    rows.append(self._row(plan, plan.method))
                    continue
                except FASError as error:
                    reason = str(error)
            rows.append(Row(plan.name, plan.timesteps, refused=reason))
            about = {"model": self.dense.name, "network": "snn", "plan": plan.name, "timesteps": plan.timesteps}
            self.output.measure("refused", 1, "1", **about, reason=reason)
        if all(row.refused for row in rows):
            raise ValueError(f"no combination is possible: {rows[0].refused if rows else 'no method was named'}")
        if self.control is None:
            return rows
        if self.dense_energy is not None:
            # Other weights, the same operations.
            self._measure_energy(self.dense_energy, {"model": self.dense.name, "network": "ann", **_CONTROL}, "ann")
        return [replace(self.control, energy=self.dense_energy), *rows]

    def _row(self, plan: Plan, method: Method) -> Row:
        from fas.conversion import convert, name_of
        from fas.energy.inventory import operations
        from fas.errors import FASError
        from fas.stages.align import Align

        # A copy: methods tune weights, and a plain network keeps its normalisations folded.
        loaded = replace(self.dense, model=copy.deepcopy(self.dense.model))
        probe = {name: value[:1] for name, value in self.batches[0].items()} if self.plain else None
        began = time.perf_counter()
        with self.output.progress("calibrating") as advance:
            try:
                convert(loaded.model, method, calibration=self.batches, probe=probe, progress=told(advance))
            except ValueError as error:
                # Neurons refuse a T that their method cannot know of: no reason to lose the other rows.
                raise FASError(str(error)) from error
            if plan.losses:
                aligned = Align(seed=self.data.seed).run(loaded.model, self.batches, told(advance))
                loaded.model.records.append(aligned)
        seconds, training = time.perf_counter() - began, None
        if self.train_steps and name_of(method) in TRAINED:
            training = self._train(loaded, method)
        stated: dict[str, Any] = {"plan": plan.name} | ({} if training is None else {"train_steps": self.train_steps})
        found, spikes = measure(self.output, loaded, self.scores, **stated)
        about = conditions(loaded)
        self.output.measure("conversion_time", seconds, "s", **about, **stated)
        if training is not None:
            self.output.measure("training_time", training, "s", **about, **stated)
        left = [o for o in operations(loaded.model, probe) if o.floats]
        self.output.measure("float_operations", sum(o.amount for o in left), f"1/{self._per}", **about, **stated)
        row = Row(plan.name, about["timesteps"], about["coverage"], about["neuron"], about["levels"], self.chief)
        return replace(
            row, value=found[self.chief], relation=self._relation(found[self.chief]), spikes=spikes,
            floats=tuple(dict.fromkeys(o.what for o in left)), seconds=seconds, training=training,
            energy=self._energy(loaded, {**about, **stated}),
        )  # fmt: skip

    def _relation(self, value: float) -> float:
        reference = self.reference[self.chief]
        return value / reference if self.chief == "perplexity" else value - reference

    def _train(self, loaded: Loaded, method: Any) -> float:
        """Run stage 1 and, the first time, measure the control that was trained beside it; return the seconds."""
        seconds, control = self.training.run(loaded, method, self.batches), self.training.control
        if self.control is None and control is not None:
            found, _ = measure(self.output, control.loaded, self.scores, **_CONTROL, train_steps=self.train_steps)
            value = found[self.chief]
            self.control = Row(
                "control", None, score=self.chief, value=value, relation=self._relation(value), training=control.seconds
            )
        return seconds

    def _energy(self, loaded: Loaded, about: dict[str, Any]) -> float | None:
        """Return pJ per token by the accounting, None without one."""
        if self.accounting is None:
            return None
        import torch

        from fas.energy.estimate import Estimate, count_both, levels_of
        from fas.energy.prices import load_prices

        with torch.no_grad():
            counts = count_both(loaded.model, self.counted)
        found = Estimate(*counts, levels_of(loaded.model), load_prices("45nm"))
        accounting: Any = self.accounting
        energy = found.energy("prefill", accounting, "snn")
        self.dense_energy = found.energy("prefill", accounting, "ann")
        for network, value in (("snn", energy), ("ann", self.dense_energy)):
            if value is not None:
                self._measure_energy(value, {**about, "reuse": found.reuse}, network)
        return energy

    def _measure_energy(self, value: float, about: dict[str, Any], network: str) -> None:
        stated = {**about, "accounting": self.accounting, "prices": "45nm", "energy_of": network}
        add(self.output, Measurement("energy", value, f"pJ/{self._per}", "estimated", stated))

    @property
    def _per(self) -> str:
        return "image" if self.plain else "token"

    def show(self, rows: Sequence[Row], title: str) -> None:
        """Print the table and what must be said beside it."""
        shown = [row for row in rows if row.refused is None]
        kinds = list(dict.fromkeys(row.floats for row in shown if row.floats))
        columns = [
            "plan",
            "coverage",
            "neuron",
            "T",
            "levels",
            self.chief,
            shown[0].relation_title,
            "spikes per neuron",
        ]
        columns += ["float", "s"]
        cells: list[list[Any]] = [
            [
                r.name, r.coverage, r.neuron, r.timesteps, r.levels, r.value, r.relation, r.spikes,
                chr(ord("a") + kinds.index(r.floats) % 26) if r.floats else None, r.seconds,
            ]
            for r in shown
        ]  # fmt: skip
        if self.train_steps:
            columns.append("training s")
            cells = [[*cell, row.training] for cell, row in zip(cells, shown, strict=True)]
        if self.accounting is not None:
            columns.append(f"µJ/{self._per}, {self.accounting}")
            cells = [[*c, None if r.energy is None else r.energy / 1e6] for c, r in zip(cells, shown, strict=True)]
        dense = f"dense: {self.chief} {self.reference[self.chief]:.4g}"
        if self.dense_energy is not None:
            dense += f", {self.dense_energy / 1e6:.4g} µJ/{self._per}"
        self.output.table(f"{title} {self.dense.name}, {self.scores.source}; {dense}", columns, cells)
        for kind in kinds:
            self.output.text(f"float {chr(ord('a') + kinds.index(kind) % 26)}: {', '.join(kind)}")
        if self.accounting is not None:
            self.output.text(f"Energies are estimates (45nm, accounting {self.accounting}); counts are measured.")
        self._say_what_trained(rows)
        refused: dict[str, list[str]] = {}
        for row in rows:
            if row.refused is not None:
                refused.setdefault(row.refused, []).append(f"{row.name}, T = {row.timesteps}")
        for reason, who in refused.items():
            self.output.text(f"refused: {'; '.join(who)}: {reason}")

    def _say_what_trained(self, rows: Sequence[Row]) -> None:
        if not self.train_steps:
            self.output.text("No control: no weights were trained on data (--train-steps does, where a method has it).")
            return
        untrained = dict.fromkeys(row.name.partition(" ")[0] for row in rows if row.training is None)
        for name in [name for name in untrained if name not in TRAINED]:
            self.output.text(f"{name} was not trained: it is made without training.")
