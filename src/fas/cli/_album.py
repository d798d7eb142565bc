"""What ``fas demo`` keeps of every conversion, to show it on one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fas.cli._calibration import conditions
from fas.cli._counted import add
from fas.cli._findings import NEW_TOKENS, look
from fas.cli.program.output import Output
from fas.data.for_model import Sample, held_out_batches
from fas.evaluation.score import Scores, measure
from fas.loading import Loaded

if TYPE_CHECKING:
    from fas.energy.estimate import Estimate
    from fas.methods.fas import FAS
    from fas.reporting.findings import Findings, Quality

_PRICES = ("45nm", "45nm-dram", "loihi")
# Enough for counts that change little with more, and few enough to count every conversion.
_COUNTED_TOKENS = 512
# Rows of 256 tokens for a conversion whose energy alone is asked for.
_FEW = 8


class Album:
    """Takes note of one conversion after another, and finds out afterwards what is still missing.

    Args:
        output: of the command.
        loaded: the model.
        scores: what it is scored on.
        calibration: what it is calibrated on.
        shown: the conversion that the page is about.
        seed: of the choice of windows.
    """

    def __init__(
        self, output: Output, loaded: Loaded, scores: Scores, calibration: Sequence[Any], shown: FAS, *, seed: int
    ) -> None:
        from fas.energy.prices import load_prices

        self._output, self._loaded, self._scores = output, loaded, scores
        self._calibration, self._shown, self._seed = calibration, shown, seed
        self._prices = [load_prices(name) for name in _PRICES]
        self._batches = held_out_batches(loaded, scores.source, Sample(_COUNTED_TOKENS, 256, 8, seed))
        self._dense: dict[str, Any] = {}
        self._coverages: dict[str, Estimate] = {}
        self._found: Findings | None = None

    def keep(self, plan: FAS) -> None:
        """Count what the conversion that the model holds costs, and look closer at the one that is shown."""
        estimate = self._estimate(plan)
        about = {**conditions(self._loaded), "plan": "fas"}
        for row in estimate.measurements(**about):
            stated = row.conditions
            wanted = stated["accounting"] == "compute" and stated.get("energy_of") in ("snn", "ann")
            if row.quantity == "energy" and wanted:
                add(self._output, row)
        if plan is self._shown:
            self._found = look(
                self._output, self._loaded, self._batches, self._prices, source=self._scores.source, command=""
            )
            self._coverages[plan.coverage] = self._found.estimates[0]
            self._losses()
        elif (plan.neuron, plan.timesteps) == (self._shown.neuron, self._shown.timesteps):
            self._coverages[plan.coverage] = self._decoding()

    def findings(self, command: str, sample: tuple[str, str]) -> Findings:
        """Return everything for the page; converts the model a few times more."""
        from fas.reporting.measure import mean_thresholds

        assert self._found is not None
        for name, switches in (("none (maximum)", {"coarse": False}), ("coarse", {})):
            self._output.remark(f"for the page: {name}")
            self._converted(self._shown.with_options(fine=False, **switches), self._calibration)
            measure(self._output, self._loaded, self._scores, plan=name)
            coarse = mean_thresholds(self._loaded.model)
            self._reverted()
        for coverage in ("mlp", "linear", "full"):
            if coverage not in self._coverages:
                self._output.remark(f"for the page: coverage {coverage}")
                few = {name: value[:_FEW] for name, value in self._calibration[0].items()}
                self._converted(self._shown.with_options(coverage=coverage), [few])
                self._coverages[coverage] = self._decoding()
                self._reverted()
        ordered = {name: self._coverages[name] for name in ("mlp", "linear", "full")}
        for coverage, estimate in ordered.items():
            about = {"model": self._loaded.name, "network": "snn", "coverage": coverage, "neuron": self._shown.neuron}
            for row in estimate.measurements(**about, timesteps=self._shown.timesteps):
                add(self._output, row)
        return replace(
            self._found,
            score="perplexity",
            quality=self._quality(),
            sites=[replace(site, coarse=coarse[site.path]) for site in self._found.sites],
            results=[
                row for row in self._output.measurements if "tokens" in row.conditions or "plan" in row.conditions
            ],
            command=command,
            recalibrated=True,
            coverages=ordered,
            sample=sample,
        )

    def _estimate(self, plan: FAS) -> Estimate:
        """Return the energy of reading; the dense network is counted once per coverage."""
        from fas.energy.estimate import Estimate, count_both, levels_of
        from fas.reporting.measure import spiking_counts

        model = self._loaded.model
        if plan.coverage in self._dense:
            counts = spiking_counts(model, self._batches)
        else:
            counts, self._dense[plan.coverage] = count_both(model, self._batches)
        return Estimate(counts, self._dense[plan.coverage], levels_of(model), self._prices[0])

    def _decoding(self) -> Estimate:
        """Return the energy of reading and writing."""
        from fas.energy.estimate import estimate_energy

        prompts = [{name: value[:, :-NEW_TOKENS] for name, value in batch.items()} for batch in self._batches]
        return estimate_energy(self._loaded.model, prompts, new_tokens=NEW_TOKENS, prices=self._prices[0])

    def _losses(self) -> None:
        """Measure what the losses add; changes the model."""
        from fas.stages.align import Align

        model = self._loaded.model
        known = {row.quantity: row for row in self._output.measurements if row.conditions.get("network") == "snn"}
        for row in (known["perplexity"], known["spikes_per_neuron"]):
            add(self._output, replace(row, conditions={**row.conditions, "plan": "coarse + fine"}))
        self._output.remark("for the page: losses")
        with self._output.progress("aligning") as advance:
            losses = Align(seed=self._seed)
            record = losses.run(model, self._calibration, progress=lambda _, done, total: advance(done, total))
        model.records.append(record)
        measure(self._output, self._loaded, self._scores, plan="coarse + fine + losses")

    def _quality(self) -> list[Quality]:
        """Return scores and energies of the shown code and coverage at every T, from what was measured."""
        from fas.reporting.findings import Quality
        from fas.reporting.result_figures import gather

        found = gather(self._output.measurements)
        assert found.dense is not None
        quality = [Quality("ann", 0, found.dense, energy=found.dense_energy)]
        wanted = (self._shown.coverage, self._shown.neuron)
        for point in (point for points in found.curves.values() for point in points):
            if (point.conditions["coverage"], point.conditions["neuron"]) == wanted:
                assert point.control is not None
                quality.append(Quality("quantised", point.timesteps, point.control))
                quality.append(Quality("snn", point.timesteps, point.value, point.spikes, point.energy))
        return quality

    def _converted(self, plan: Any, batches: Sequence[Any]) -> None:
        from fas.conversion import convert

        with self._output.progress("converting") as advance:
            model = self._loaded.model
            convert(model, plan, calibration=batches, progress=lambda _, done, total: advance(done, total))

    def _reverted(self) -> None:
        from fas.conversion import revert

        revert(self._loaded.model)
