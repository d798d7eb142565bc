"""What a converted model has become, in some ten lines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fas.calibration.figures import Figures, by_kind, in_words, mean_of
from fas.config import FASConfig
from fas.energy.inventory import operations
from fas.surgery.left_dense import in_words as left_in_words
from fas.types import Site


@dataclass(frozen=True)
class Summary:
    """A converted model in short.

    Attributes:
        config: what spikes and how; its ``left_dense`` are shares of the multiply-adds by name.
        sites: by kind of layer (``mlp.down_proj``).
        figures: relative error and spikes per neuron by site; empty where no stage has stated them.
        floats: operations on values that are not spikes, each with where it is; None if unknown.
    """

    config: FASConfig
    sites: Mapping[str, list[Site]]
    figures: Mapping[str, Figures]
    floats: tuple[str, ...] | None

    @property
    def network(self) -> Figures:
        """Mean relative error of all sites and mean spikes of all neurons."""
        return mean_of(self.config.sites or (), self.figures)

    @property
    def kinds(self) -> dict[str, Figures]:
        """The same by kind of layer."""
        return {kind: mean_of(sites, self.figures) for kind, sites in self.sites.items()}

    @property
    def worst(self) -> str | None:
        """Path of the site with the largest relative error, None where none is known."""
        return max(self.figures, key=lambda path: self.figures[path]["relative_error"], default=None)

    @property
    def expected(self) -> float | None:
        """KL(dense ‖ spiking) per answer in nats that calibration expects, None where it has weighed no errors."""
        known = [r.results["expected_divergence"] for r in self.config.records if "expected_divergence" in r.results]
        return known[-1] if known else None

    def lines(self) -> list[str]:
        """Return it as text."""
        recipe, worst = self.config.recipe, self.worst
        kinds = ", ".join(f"{len(sites)} {kind}" for kind, sites in self.sites.items())
        levels = self.config.levels_after(recipe.timesteps)
        lines = [
            f"spiking: {sum(map(len, self.sites.values()))} sites ({kinds}), coverage {recipe.coverage}",
            f"code: {self.config.neuron}, T = {recipe.timesteps}, {levels:,} levels; method {self.config.method}",
        ]
        if worst is not None:
            seconds = sum(record.results.get("seconds", 0.0) for record in self.config.records)
            errors = ", ".join(f"{kind} {found['relative_error']:.2g}" for kind, found in self.kinds.items() if found)
            lines += [f"network: {in_words(self.network)}; calibrated in {seconds:.0f} s"]
            if self.expected is not None:
                lines[-1] += f"; expected KL to the dense model {self.expected:.2g} nats per answer"
            lines += [f"relative error by layer: {errors}", f"worst site: {worst}, {in_words(self.figures[worst])}"]
        if self.config.left_dense is not None:
            lines.append(left_in_words(self.config.left_dense))
        if self.floats is not None:
            lines.append(f"stays float: {'; '.join(self.floats) or 'nothing'}")
        return lines


def summarise(model: Any) -> Summary:
    """Return what a converted model has become.

    Args:
        model: a converted model; or the configuration of one, which cannot tell what stays float.

    Example:
        >>> fas.summarise(model).worst  # doctest: +SKIP
        'model.layers.29.mlp.down_proj'
    """
    config: FASConfig = model if isinstance(model, FASConfig) else model.fas_config
    figures: dict[str, Figures] = {}
    for record in config.records:
        figures.update({path: found for path, found in record.sites.items() if "relative_error" in found})
    floats: tuple[str, ...] | None = None
    if model is not config:
        places: dict[str, dict[str, None]] = {}
        for o in operations(model):
            if o.floats:
                places.setdefault(o.what, {})[o.path.removeprefix("in ").partition(" ")[0]] = None
        floats = tuple(f"{what} at {', '.join(where)}" for what, where in places.items())
    return Summary(config, by_kind(config.sites or ()), figures, floats)
