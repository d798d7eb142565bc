"""Sites that an interrupted calibration has fitted, kept on the disk until the whole model is saved."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from fas.storage.directory import whole_file
from fas.storage.sharded import write_whole
from fas.surgery.replace import populations, spiking_layers
from fas.types import Site

logger = logging.getLogger(__name__)

_RUN = "calibration.json"


class KeptSites:
    """What calibration has found at the sites done so far; a run that was killed goes on behind them.

    ``directory`` holds ``calibration.json``, which says what the result depends on, and a file for each site that is
    done: the parameters of its neurons and the corrections of its layers, with the figures as metadata. Every file
    appears whole. Those of another run are removed when the first site is kept: a run that ends before, because its
    batches do not fit into memory, leaves what one with smaller batches has found.

    Args:
        directory: of the run, made if it is not there.
        model: the converted model that is calibrated.
        about: what the result depends on, in JSON types.
    """

    def __init__(self, directory: Path, model: Any, about: Mapping[str, Any]) -> None:
        self.directory = directory
        self._neurons, self._layers = populations(model), spiking_layers(model)
        self._numbers = {site.path: i for i, site in enumerate(model.sites)}
        self._about: dict[str, Any] = json.loads(json.dumps(dict(about)))
        self._begun = _read(directory / _RUN) == self._about
        directory.mkdir(parents=True, exist_ok=True)
        done = sum(self._file(site).is_file() for site in model.sites) if self._begun else 0
        if done:
            logger.warning("continuing: %d of %d sites are done (%s)", done, len(model.sites), directory)

    def restore(self, site: Site) -> Mapping[str, float] | None:
        """Give a site what an earlier run has found there; return its figures, or None if it is still to do."""
        file = self._file(site)
        if not self._begun or not file.is_file():
            return None
        with torch.no_grad(), safe_open(file, "pt") as stored:
            for name, tensor in self._tensors(site).items():
                tensor.copy_(stored.get_tensor(name))
            figures: Mapping[str, float] = json.loads(stored.metadata()["figures"])
        return figures

    def keep(self, site: Site, figures: Mapping[str, float]) -> None:
        """Write what has been found at a site."""
        self._begin()
        tensors = {name: tensor.detach().contiguous() for name, tensor in self._tensors(site).items()}
        write_whole(self._file(site), tensors, {"figures": json.dumps(dict(figures))})

    def _begin(self) -> None:
        """Say of what run the sites are, those of another one removed."""
        if self._begun:
            return
        before = _read(self.directory / _RUN)
        if before is not None:
            changed = next(k for k in {**before, **self._about} if before.get(k) != self._about.get(k))
            logger.warning("%s is of another calibration (%s differs): starting anew", self.directory, changed)
        for file in self.directory.glob("site-*"):
            file.unlink()
        with whole_file(self.directory / _RUN) as beside:
            beside.write_text(json.dumps(self._about), encoding="utf-8")
        self._begun = True

    def _file(self, site: Site) -> Path:
        return self.directory / f"site-{self._numbers[site.path]:05d}.safetensors"

    def _tensors(self, site: Site) -> dict[str, torch.Tensor]:
        own = {f"neuron.{name}": value for name, value in self._neurons[site.path].named_parameters(recurse=False)}
        return {**own, **{f"{path}.correction": self._layers[path].correction for path in site.layers}}


def _read(file: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None
