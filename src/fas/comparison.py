"""Several conversions of one dense model, measured in turn on the same data."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from fas.conversion import calibrate, convert, losses_of, name_of
from fas.data.for_model import (
    Sample,
    calibration_batches,
    check_apart,
    contents,
    default_data,
    held_out_batches,
)
from fas.energy.bill import Hardware
from fas.energy.estimate import Accounting, Estimate, counts_of, levels_of
from fas.energy.inventory import operations
from fas.energy.prices import load_prices
from fas.errors import FASError
from fas.evaluation.control import TRAINED, Training
from fas.evaluation.interval import CONFIDENCE, ratio_interval
from fas.evaluation.kept import Kept
from fas.evaluation.score import WINDOWS, measure, scores_on
from fas.loading import Loaded, loaded_of
from fas.plain_networks import inputs_of, is_plain, photographs
from fas.storage.digest import digests
from fas.types import Measurement, Method, Progress

# Tokens, or images, whose operations are counted: counts per token settle quickly.
_COUNTED, _COUNTED_IMAGES = 1024, 32
# Fields of methods that leave the operations of the dense network as they are.
_OF_CODES = ("timesteps", "levels", "neuron")
CONTROL = "control"
"""Plan of the dense model that was fine-tuned on the same data."""


@dataclass(frozen=True)
class Plan:
    """One conversion to measure.

    Attributes:
        name: what the row is called: the method, or the part of it that is switched on.
        method: the recipe; None where it refused its own options.
        losses: whether thresholds are trained by the FAS losses after it.
        refused: why there is no method.
        timesteps: T that was asked for.
    """

    name: str
    method: Method | None
    losses: bool = False
    refused: str | None = None
    timesteps: int | None = None

    def __str__(self) -> str:
        about = [getattr(self.method, name, None) for name in ("coverage", "neuron")]
        return ", ".join([self.name, *(str(part) for part in about if part), f"T = {self.timesteps}"])


@dataclass(frozen=True)
class Row:
    """What was measured of one conversion.

    Attributes:
        plan: its name; ``control`` for the dense model trained on the same data, ``dense`` for the dense model.
        timesteps: T that was asked for.
        measurements: the chief score of the network first.
    """

    plan: str
    timesteps: int | None
    measurements: Sequence[Measurement]

    @property
    def stated(self) -> list[Measurement]:
        """The measurements without what single windows gave."""
        hidden = [{k: v for k, v in row.conditions.items() if k != WINDOWS} for row in self.measurements]
        return [replace(row, conditions=about) for row, about in zip(self.measurements, hidden, strict=True)]

    @property
    def refused(self) -> str | None:
        """Why there is nothing to show, None where there is."""
        first = self.measurements[0]
        return str(first.conditions["reason"]) if first.quantity == "refused" else None

    @property
    def score(self) -> str:
        """Name of the chief score."""
        return self.measurements[0].quantity

    @property
    def value(self) -> float:
        """The chief score."""
        return self.measurements[0].value

    @property
    def about(self) -> dict[str, Any]:
        """Conditions of the chief score."""
        return dict(self.measurements[0].conditions)

    @property
    def floats(self) -> tuple[str, ...]:
        """Kinds of operations that stay float."""
        found = self._of("float_operations")
        return () if found is None else tuple(found.conditions["operations"])

    def figure(self, quantity: str, energy_of: str = "snn") -> float | None:
        """Return a figure, None where it was not measured."""
        found = self._of(quantity, energy_of)
        return None if found is None else found.value

    def _of(self, quantity: str, energy_of: str = "snn") -> Measurement | None:
        found = (row for row in self.measurements if row.quantity == quantity)
        return next((row for row in found if row.conditions.get("energy_of", energy_of) == energy_of), None)


@dataclass(frozen=True)
class Comparison:
    """Conversions of one model.

    Attributes:
        dense: the dense model itself.
        rows: by plan, the control first where one was trained.
    """

    dense: Row
    rows: Sequence[Row]

    @property
    def measurements(self) -> list[Measurement]:
        """Every figure, then the ratios of perplexities with their intervals."""
        found = [measured for row in (self.dense, *self.rows) for measured in row.stated]
        for row in self.rows:
            if row.refused is None and row.score == "perplexity":
                about = {name: value for name, value in row.about.items() if name not in (WINDOWS, "stderr")}
                if (interval := self.interval(row)) is not None:
                    about |= {"interval": list(interval), "confidence": CONFIDENCE}
                found.append(Measurement("perplexity_ratio", self.relation(row), "1", conditions=about))
        return found

    def interval(self, row: Row) -> tuple[float, float] | None:
        """Return between which values chance lets the ratio of perplexities lie (``fas.evaluation.interval``)."""
        ours, theirs = (of.about.get(WINDOWS) for of in (row, self.dense))
        return ratio_interval(ours, theirs) if ours and theirs else None

    def relation(self, row: Row) -> float:
        """Return how a score stands to the dense model's: a ratio of perplexities, a difference of other scores."""
        return row.value / self.dense.value if row.score == "perplexity" else row.value - self.dense.value


def compare(
    model: Any,
    plans: Sequence[Method | Plan],
    data: str | Path | None = None,
    *,
    tokenizer: Any = None,
    test_data: str | Path | None = None,
    tokens: int = 16384,
    test_tokens: int = 16384,
    window: int | None = None,
    batch_size: int = 8,
    images: int = 256,
    test_images: int = 1000,
    accounting: Accounting | None = "compute",
    train_steps: int = 0,
    seed: int = 0,
    device: str = "cpu",
    kept: Kept | None = None,
    measured: Callable[[Row, int, int], None] | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Convert one dense model by several methods and measure what each of them costs and keeps.

    Every plan starts from the same weights; the model itself stays dense. A plan that refuses it has a row saying so.

    Args:
        model: a name, what ``fas.load`` returns, or a transformers model.
        plans: methods, or parts of them, measured in turn.
        data: for calibration; the embedded model brings its own.
        tokenizer: of a transformers model; that of the place it was loaded from if None.
        test_data: for the measurement; the ``test`` part of ``data`` if None.
        tokens: to calibrate on.
        test_tokens: to measure on, from the first.
        window: tokens per window.
        batch_size: windows or rows per call.
        images: to calibrate a plain network on.
        test_images: to measure a plain network on.
        accounting: of the energies; None leaves them out.
        train_steps: steps of stage 1 for methods that have it, and for the control (the dense model trained alike).
        seed: of the choice of calibration windows.
        device: where a model is put that is loaded by name.
        kept: keeps what is measured, for a run that is killed (``fas.evaluation.kept``).
        measured: called with every row, that of the dense model first, with combinations done and in all.
        progress: called with the combination and its step, parts done and in all.

    Raises:
        ValueError: the model is converted already; the same data would calibrate and measure; no plan is possible.
        FASError: what loading or reading raises.

    Example:
        >>> found = fas.compare("embedded", [fas.FAS(timesteps=4), fas.LAS(timesteps=4)])  # doctest: +SKIP
        >>> [(row.plan, found.relation(row)) for row in found.rows]  # doctest: +SKIP
        [('fas', 1.08), ('las', 1.01)]
    """
    dense = loaded_of(model, tokenizer, device)
    if dense.converted:
        raise ValueError(f"{dense.name} is converted already: name the dense model that it was made from")
    source = default_data(dense, None if data is None else str(data))
    named = [plan if isinstance(plan, Plan) else Plan(name_of(plan), plan, timesteps=plan.timesteps) for plan in plans]
    if not named:
        raise ValueError("no combination is possible: no method was named")
    sample = Sample(tokens, window, batch_size, seed)
    seen = _Data(dense, source, str(test_data or source), sample, test_tokens, images, test_images)
    check_apart(*seen.contents, source, seen.test_source)
    bench = _Bench(seen, accounting, train_steps, kept, progress)
    scored = partial(measure, dense, seen.scores, kept=kept, progress=progress, by_window=True, part="dense")
    reference = Row("dense", None, bench.part("dense", scored))
    if measured is not None:
        measured(reference, 0, len(named))
    rows: list[Row] = []
    control: list[Measurement] = []
    for done, plan in enumerate(named):
        key = f"{done} {plan} {plan.method}"
        found = bench.part(key, partial(bench.measured, plan, key, f"{done + 1} of {len(named)}"))
        control += [row for row in found if row.conditions["plan"] == CONTROL]
        bench.training.has_control = bool(control)
        rows.append(Row(plan.name, plan.timesteps, [row for row in found if row.conditions["plan"] != CONTROL]))
        if measured is not None:
            measured(rows[-1], done + 1, len(named))
    if all(row.refused for row in rows):
        raise ValueError(f"no combination is possible: {rows[0].refused}")
    if control:
        # Other weights, the same operations.
        energies = [row for found in rows for row in found.measurements if row.conditions.get("energy_of") == "ann"]
        conditions = {"model": dense.name, "network": "ann", "plan": CONTROL, "energy_of": "ann"}
        kinds = ("accounting", "prices", "versions")
        control += [
            replace(row, conditions={**conditions, **{name: row.conditions[name] for name in kinds}})
            for row in energies[:1]
        ]
        rows.insert(0, Row(CONTROL, None, control))
    return Comparison(reference, rows)


@dataclass(frozen=True)
class _Data:
    """The dense model, and what all of its conversions see; arguments as ``compare``."""

    dense: Loaded
    source: str
    test_source: str
    sample: Sample
    test_tokens: int
    images: int
    test_images: int

    @property
    def contents(self) -> tuple[list[str], list[str]]:
        """What calibrates and what is measured on, as ``check_apart`` takes it."""
        if not is_plain(self.dense):
            return contents(self.dense, self.source, "train"), contents(self.dense, self.test_source, "test")
        # Of images as many are read as will be used.
        return digests(self.calibration), digests(inputs_of(self.scores.images))

    @property
    def per(self) -> str:
        return "image" if is_plain(self.dense) else "token"

    @cached_property
    def scores(self) -> Any:
        return scores_on(
            self.dense, self.test_source, limit=self.test_tokens, window=self.sample.window,
            batch_size=self.sample.batch_size, images=self.test_images,
        )  # fmt: skip

    @cached_property
    def calibration(self) -> list[Any]:
        if is_plain(self.dense):
            seed = self.sample.seed
            return inputs_of(photographs(self.dense, self.source, "train", limit=self.images, rows=64, seed=seed))
        return calibration_batches(self.dense, self.source, self.sample)

    @cached_property
    def counted(self) -> list[Any]:
        if is_plain(self.dense):
            return inputs_of([{name: value[:_COUNTED_IMAGES] for name, value in self.scores.images[0].items()}])
        some = replace(self.sample, tokens=max(_COUNTED, self.sample.window or 0))
        return held_out_batches(self.dense, self.test_source, some)


class _Bench:
    """One dense model with its data, on which conversions are measured."""

    def __init__(
        self, data: _Data, accounting: Accounting | None, train_steps: int, kept: Kept | None, progress: Progress | None
    ) -> None:
        self.data, self.accounting, self.train_steps = data, accounting, train_steps
        self.kept, self._progress = kept, progress
        self.training = Training(data.dense, data.source, train_steps, data.sample)
        # Counts of the dense network, by what they depend on.
        self._dense_counts: dict[str, Any] = {}

    def part(self, name: str, run: Callable[[], list[Measurement]]) -> list[Measurement]:
        """Return the figures of a part, which an earlier run may have measured."""
        return run() if self.kept is None else self.kept.part(name, run)

    def measured(self, plan: Plan, key: str, place: str) -> list[Measurement]:
        reason = plan.refused
        if plan.method is not None:
            try:
                return list(self._measured(plan, plan.method, key, place))
            except FASError as error:
                reason = str(error)
        about = {"model": self.data.dense.name, "network": "snn", "plan": plan.name, "timesteps": plan.timesteps}
        return [Measurement("refused", 1, "1", conditions={**about, "reason": reason})]

    def _measured(self, plan: Plan, method: Method, key: str, place: str) -> Iterator[Measurement]:
        def progress(step: str) -> Progress | None:
            tell = self._progress
            return None if tell is None else lambda at, *parts: tell(f"{place}: {plan}: {step}, {at}", *parts)

        data = self.data
        # A copy: methods tune weights, and a plain network keeps its normalisations folded.
        loaded = replace(data.dense, model=copy.deepcopy(data.dense.model))
        probe = {name: value[:1] for name, value in data.calibration[0].items()} if is_plain(loaded) else None
        began = time.perf_counter()
        try:
            convert(loaded.model, method, probe=probe)
            keep = None if self.kept is None else self.kept.folder(key)
            calibrate(loaded.model, data.calibration, keep=keep, progress=progress("calibrating"))
        except ValueError as error:
            # Neurons refuse a T that their method cannot know of: no reason to lose the other rows.
            raise FASError(str(error)) from error
        if plan.losses:
            stage = losses_of(method, data.sample.seed)
            aligned = stage.run(loaded.model, data.calibration, progress("aligning"))
            loaded.model.records.append(aligned)
        seconds, training = time.perf_counter() - began, None
        stated: dict[str, Any] = {"plan": plan.name}
        if self.train_steps and name_of(method) in TRAINED:
            stated["train_steps"] = self.train_steps
            training = self.training.run(loaded, method, data.calibration, progress("training"))
            yield from self._control()
        told = progress("measuring")
        yield from measure(loaded, data.scores, kept=self.kept, progress=told, by_window=True, part=key, **stated)
        about = {**loaded.conditions, **stated}
        yield Measurement("conversion_time", seconds, "s", conditions=about)
        if training is not None:
            yield Measurement("training_time", training, "s", conditions=about)
        left = [o for o in operations(loaded.model, probe) if o.floats]
        kinds = list(dict.fromkeys(o.what for o in left))
        amount = float(sum(o.amount for o in left))
        yield Measurement("float_operations", amount, f"1/{data.per}", conditions={**about, "operations": kinds})
        if self.accounting is not None:
            yield from self._energy(loaded, method, about, progress("counting"))

    def _control(self) -> Iterator[Measurement]:
        control = self.training.control
        if control is None or self.training.has_control:
            return
        about: dict[str, Any] = {"plan": CONTROL, "train_steps": self.train_steps}
        yield from measure(control.loaded, self.data.scores, progress=self._progress, by_window=True, **about)
        conditions = {**control.loaded.conditions, **about}
        yield Measurement("training_time", control.seconds, "s", conditions=conditions)

    @torch.no_grad()
    def _energy(
        self, loaded: Loaded, method: Any, about: dict[str, Any], progress: Progress | None
    ) -> Iterator[Measurement]:
        """Return pJ per token or image by the accounting, of the spiking and of the dense network."""
        assert self.accounting is not None
        spiking = counts_of(loaded.model, self.data.counted, progress=progress)
        options = {name: value for name, value in asdict(method).items() if name not in _OF_CODES}
        key = f"{name_of(method)} {options} {about.get('train_steps')}"
        if key not in self._dense_counts:
            self._dense_counts[key] = counts_of(loaded.model, self.data.counted, "ann", progress=progress)
        found = Estimate(spiking, self._dense_counts[key], levels_of(loaded.model), Hardware(load_prices("45nm")))
        stated = {**about, **found.hardware.conditions, "accounting": self.accounting}
        for network in ("snn", "ann"):
            value = found.energy("prefill", self.accounting, network)
            if value is not None:
                conditions = {**stated, "energy_of": network}
                yield Measurement("energy", value, f"pJ/{self.data.per}", "estimated", conditions)
