"""Looking at one converted network for a report: everything but its scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fas.cli._calibration import conditions
from fas.cli._counted import count
from fas.cli.program.output import Output
from fas.data.for_model import is_classifier
from fas.loading import Loaded

if TYPE_CHECKING:
    from fas.energy.prices import Prices
    from fas.reporting.findings import Findings

# Tokens written behind each prompt, to see decoding.
NEW_TOKENS = 8
_MARGINS = tuple(0.25 * i for i in range(33))


def look(
    output: Output,
    loaded: Loaded,
    batches: Sequence[Mapping[str, Any]],
    prices: Sequence[Prices],
    *,
    source: str,
    command: str,
    coarse: Mapping[str, float] | None = None,
    early_exit: bool = True,
) -> Findings:
    """Return sites, spike trains, energy and early stopping of a converted model.

    Args:
        output: of the command.
        loaded: the model, converted and calibrated.
        batches: held-out inputs to run on.
        prices: cost models.
        source: name of the data.
        command: that makes the report.
        coarse: threshold of each site before fine calibration.
        early_exit: look at early stopping, where the network can.

    Returns:
        Findings without scores, results, sample and duration, for ``dataclasses.replace``.
    """
    from fas.energy.estimate import Estimate, levels_of
    from fas.reporting import measure
    from fas.reporting.findings import Findings

    network = loaded.model
    writes = loaded.generates and network.main_input_name == "input_ids"
    shown = batches
    if writes:
        # Prompts leave room for what is written behind them.
        shown = [{name: value[:, : max(1, value.shape[1] - NEW_TOKENS)] for name, value in b.items()} for b in batches]
    counts = count(output, loaded, list(map(dict, shown)), NEW_TOKENS if writes else 0)
    exits = []
    if early_exit and writes and not network.config.is_encoder_decoder and not is_classifier(loaded):
        exits = measure.early_exits(network, batches[0], _MARGINS)
    return Findings(
        name=Path(loaded.name).name,
        facts=_facts(conditions(loaded)),
        score="",
        quality=(),
        sites=measure.site_findings(network, batches, coarse),
        rasters=measure.rasters(network, batches[0]),
        agreement=measure.agreement(network, batches[0]),
        estimates=[Estimate(*counts, levels_of(network), cost) for cost in prices],
        exits=exits,
        command=command,
        versions=_versions(),
        seconds=0.0,
        data=source,
    )


def _facts(about: Mapping[str, Any]) -> dict[str, str]:
    names = {
        "method": "method", "coverage": "coverage", "neuron": "neuron", "timesteps": "time steps", "levels": "levels",
        "schedule": "schedule", "operators": "operators", "execution": "execution",
    }  # fmt: skip
    return {title: str(about[name]) for name, title in names.items() if name in about}


def _versions() -> dict[str, str]:
    import platform
    from importlib.metadata import version

    from fas import __version__

    return {
        "fas": __version__,
        **{name: version(name) for name in ("torch", "transformers", "matplotlib")},
        "Python": platform.python_version(),
    }
