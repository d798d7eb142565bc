"""Converted models that are plain modules: no transformers configuration, one tensor or several in and out."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from fas.config import FASConfig
from fas.errors import CheckpointError
from fas.runtime.spiking import make_dense
from fas.runtime.transformers_ import ConvertedModel, exchange
from fas.storage.card import write_card
from fas.storage.checksums import write_sums
from fas.storage.directory import check_files, read_config, whole_directory
from fas.storage.foreign import check_neurons
from fas.surgery.fold_batch_norm import fold_batch_norm, prepare_folded
from fas.types import Record

_WEIGHTS = "model.safetensors"


class ConvertedModule(ConvertedModel):
    """A converted plain module: knows its sites; its directory is read back by ``load_module``."""

    _fas_config: FASConfig

    @property
    def fas_config(self) -> FASConfig:
        """What spikes and how, with the settings as they are now."""
        return self._fas_config

    def _batch_rows(self, inputs: dict[str, Any]) -> int:
        """Return the rows of the first tensor that the forward was given."""
        for path, module in self.named_modules():
            if getattr(module, "batch_first", True) is False:
                raise ValueError(
                    f"{path} ({type(module).__name__}) has the sequence first, but the online schedule lays time steps "
                    "into the first dimension as batch: set model.schedule = 'layerwise', or build it with batch_first"
                )
        for value in inputs.values():
            if isinstance(value, Tensor) and value.ndim:
                return len(value)
        raise ValueError(
            f"the online schedule lays time steps into the batch, but {type(self).__name__} was given no tensor "
            f"(got {sorted(inputs)})"
        )

    def _answer(self, output: Any) -> Tensor:
        """The output itself: a plain module returns its logits."""
        logits: Tensor = output
        return logits

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Write ``config.json`` and ``model.safetensors``; the directory appears whole or not at all.

        Raises:
            TypeError: a keyword that transformers' models have and this one does not.
            OSError: disk full, no permission: nothing is left behind.
        """
        if kwargs:
            raise TypeError(f"a plain module is saved without options, got {sorted(kwargs)}")
        described = {"architectures": [type(self).__name__], "quantization_config": self.fas_config.to_dict()}
        with whole_directory(Path(save_directory)) as beside:
            (beside / "config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
            save_model(self, str(beside / _WEIGHTS))
            write_sums(beside)
            write_card(beside)


def load_module(model: nn.Module, directory: str | os.PathLike[str]) -> Any:
    """Turn a dense module into the converted one that a directory holds, in place.

    Args:
        model: the dense module, built by the same code as the one that was converted; its weights are replaced.
        directory: written by ``save_pretrained`` of a converted module.

    Returns:
        The same model, converted.

    Raises:
        CheckpointError: a directory that is damaged, or was written by a transformers model.
        SiteError: another model.

    Example:
        >>> snn = fas.load_module(torchvision.models.vgg11(), "vgg-snn")  # doctest: +SKIP
    """
    folder = Path(directory)
    stored = read_config(folder).get("quantization_config")
    file = folder / _WEIGHTS
    if not isinstance(stored, Mapping) or not file.is_file():
        raise CheckpointError(
            f"{folder} is not a converted plain module: it needs a config.json with quantization_config and {_WEIGHTS}"
        )
    config = FASConfig(**stored)
    if config.sites is None:
        raise CheckpointError(f"{folder / 'config.json'} names no spiking sites; it is damaged or was edited")
    check_files([str(file)], config.sites)
    for record in config.records:
        if record.stage == "fold_batch_norm":
            prepare_folded(model, record.settings["folded"])
    _attach(model, config)
    try:
        load_model(model, str(file))
    except (RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{file} does not fit {type(model).__name__}: {error}") from None
    check_neurons(model, str(folder))
    return model


def install_module(model: Any, config: FASConfig, probe: Mapping[str, Any] | None) -> None:
    """Fold batch normalisation, exchange the layers of a plain module and make it a ``ConvertedModule``, in place."""
    assert probe is not None
    folded = fold_batch_norm(model, probe)
    if folded:
        config.records.append(Record("fold_batch_norm", {"folded": folded}, {"layers": float(len(folded))}))
    _attach(model, config)


def _attach(model: Any, config: FASConfig) -> None:
    exchange(model, config, ConvertedModule)
    model._fas_config = config
    if not hasattr(model, "config"):
        # What asks a model for its configuration finds one that says nothing.
        model.config = SimpleNamespace()


def uninstall_module(model: Any) -> None:
    """Turn a converted plain module back into a dense one, in place; folded normalisations stay folded."""
    make_dense(model)
    del model._fas_config
    if isinstance(model.config, SimpleNamespace) and not vars(model.config):
        del model.config
