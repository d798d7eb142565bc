"""What must be said beside any figure of a model, so that two figures can be compared."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from typing import Any

from fas._version import __version__
from fas.runtime.spiking import SpikingModel
from fas.settings import SAVED


def conditions(model: Any, name: str | None = None) -> dict[str, Any]:
    """Return the conditions of every figure of a model, as it is set now.

    Args:
        model: a dense or a converted model.
        name: what to call it; the name or directory it was loaded from, else its class, if None.

    Returns:
        ``model``, ``network`` and ``versions``; of a converted model ``method`` and ``coverage``; of its spiking and
        quantised networks ``neuron``, the settings that are saved (``timesteps`` is T) and ``levels``,
        the number of values that an activation can take, zero and both signs included.
    """
    about: dict[str, Any] = {
        "model": name or getattr(model, "name_or_path", "") or type(model).__name__,
        "network": "ann",
        "versions": dict(versions()),
    }
    if not isinstance(model, SpikingModel):
        return about
    config: Any = model.fas_config
    about |= {"method": config.method, "coverage": config.recipe.coverage, "network": model.network}
    if model.network == "ann":
        return about
    levels = config.levels_after(model.timesteps)
    # A uniform grid, unless it has the neuron's own levels.
    own = config.recipe.build(config.sites[0]).resolution(model.timesteps)
    if model.network == "quantised" and model.levels != own:
        levels = (2 if any(site.signed for site in config.sites) else 1) * model.levels + 1
    return {**about, "neuron": config.neuron, **{name: getattr(model, name) for name in SAVED}, "levels": levels}


@cache
def versions() -> dict[str, str]:
    """Return the versions of the packages that make figures; to look them up takes a hundredth of a second."""
    return {"fas": __version__, **{package: version(package) for package in ("torch", "transformers")}}
