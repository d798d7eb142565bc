"""Converted models in transformers' own loading and saving."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer

from fas.config import FASConfig
from fas.errors import CheckpointError
from fas.layers.simulation import Simulation
from fas.runtime.spiking import SpikingModel, make_dense, make_spiking
from fas.surgery.attention import SPIKING_ATTENTION
from fas.surgery.replace import attach, detach
from fas.types import OPERANDS, Record, Site

register_quantization_config("fas")(FASConfig)


class ConvertedModel(SpikingModel):
    """A converted transformers model: knows its sites and saves as one piece."""

    config: Any

    @property
    def fas_config(self) -> FASConfig:
        """The configuration with the settings as they are now."""
        config: FASConfig = self.config.quantization_config
        simulation = self._simulation
        names = ("timesteps", "levels", "schedule", "operators", "execution")
        config.recipe = config.recipe.with_options(**{name: getattr(simulation, name) for name in names})
        return config

    @property
    def sites(self) -> list[Site]:
        """The sites in the order of execution."""
        sites: list[Site] = self.config.quantization_config.sites
        return sites

    @property
    def records(self) -> list[Record]:
        """What the stages did, in order."""
        records: list[Record] = self.config.quantization_config.records
        return records

    def set_attn_implementation(self, attn_implementation: Any, *arguments: Any, **named: Any) -> None:
        """Choose the attention function as in transformers, unless spikes drive attention.

        Raises:
            ValueError: a converted model of coverage ``full``, whose attention would become dense.
        """
        if any(site.role in OPERANDS for site in self.sites) and attn_implementation not in SPIKING_ATTENTION:
            raise ValueError(
                f"attention {attn_implementation!r} would leave {len(self.sites)} sites of coverage 'full' without "
                "spikes: fas.revert(model) first, set it on the dense model and convert again"
            )
        super().set_attn_implementation(attn_implementation, *arguments, **named)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Write ``config.json`` and safetensors; the directory appears whole or not at all.

        Files that an earlier save of a model has left there are replaced together, others stay.

        Args:
            save_directory: where to.
            kwargs: as in transformers.

        Raises:
            OSError: disk full, no permission: nothing is left behind.
        """
        _ = self.fas_config
        with whole_directory(Path(save_directory)) as beside:
            super().save_pretrained(beside, **kwargs)


class whole_directory:
    """Write a directory beside its place and move it there when everything has been written."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __enter__(self) -> Path:
        if self.target.exists() and not self.target.is_dir():
            raise NotADirectoryError(f"{self.target} is a file; name a directory to save to")
        self.target.parent.mkdir(parents=True, exist_ok=True)
        self.beside = Path(tempfile.mkdtemp(prefix=f".{self.target.name}.", dir=self.target.parent))
        # mkdtemp is private to the user; what takes the place of a directory follows the umask as it would.
        umask = os.umask(0)
        os.umask(umask)
        self.beside.chmod(0o777 & ~umask)
        return self.beside

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if kind is not None:
            shutil.rmtree(self.beside, ignore_errors=True)
            return
        if not self.target.exists():
            self.beside.rename(self.target)
            return
        written = {path.name for path in self.beside.iterdir()}
        for path in self.target.iterdir():
            stale = path.suffix == ".safetensors" or path.name.endswith(".safetensors.index.json")
            if path.name not in written and not stale:
                path.rename(self.beside / path.name)
        old = Path(tempfile.mkdtemp(prefix=f".{self.target.name}.", dir=self.target.parent))
        self.target.rename(old / "old")
        self.beside.rename(self.target)
        shutil.rmtree(old)


@register_quantizer("fas")
class FASQuantizer(HfQuantizer):
    """Hooks of ``from_pretrained``: spiking layers before the weights arrive, or after them."""

    requires_calibration = False

    def is_serializable(self) -> bool:
        """Whether ``save_pretrained`` may write the model."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether gradients flow."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Whether ``Trainer`` may train all parameters: stage 1 does."""
        return True

    def get_state_dict_and_metadata(self, model: nn.Module) -> tuple[None, dict[str, str]]:
        """Mark the weights file."""
        return None, {"fas_version": self.quantization_config.version}

    def _process_model_before_weight_loading(
        self, model: nn.Module, checkpoint_files: Sequence[str] | None = None, **kwargs: Any
    ) -> None:
        config: FASConfig = self.quantization_config
        if config.sites is None:
            if self.pre_quantized:
                raise CheckpointError("config.json names no spiking sites; the directory is damaged or was edited")
            return
        check_files(checkpoint_files or (), config.sites)
        install(model, config, self)

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        # A dense checkpoint: only now can the model run and show its sites.
        if not isinstance(model, ConvertedModel):
            install(model, self.quantization_config, self)
        return model


def exchange(model: Any, config: FASConfig, mixin: type[ConvertedModel]) -> None:
    """Exchange the layers at the sites of a configuration and give the model its time steps, in place."""
    recipe: Any = config.recipe
    assert config.sites
    simulation = Simulation(
        timesteps=recipe.timesteps,
        levels=recipe.levels or recipe.build(config.sites[0]).resolution(recipe.timesteps),
        schedule=recipe.schedule,
        operators=recipe.operators,
        execution=recipe.execution,
    )
    attach(model, config.sites, simulation, recipe.build, granularity=recipe.granularity, gated=recipe.gated)
    make_spiking(model, simulation, mixin)


def install(model: Any, config: FASConfig, quantizer: FASQuantizer | None = None) -> None:
    """Exchange the layers of a transformers model and make it a ``ConvertedModel``, in place."""
    if config.sites is None:
        config.sites = config.recipe.select(model)
    exchange(model, config, ConvertedModel)
    strict = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    model._keep_in_fp32_modules_strict = strict | {"neuron", "correction"}
    model.config.quantization_config = config
    model.config._is_quantized = True
    model.hf_quantizer = quantizer if quantizer is not None else FASQuantizer(config)
    model.is_quantized, model.quantization_method = True, "fas"


def uninstall(model: Any) -> None:
    """Turn a converted model back into the dense one that it was made of, in place."""
    sites = model.sites
    make_dense(model)
    detach(model, sites)
    model.hf_quantizer.remove_quantization_config(model)
    model.config._is_quantized = False


def check_files(files: Sequence[str], sites: Sequence[Site]) -> None:
    """Refuse a checkpoint that cannot be read or lacks parameters of a site.

    transformers would only warn, and fill what is missing with whatever memory holds.

    Raises:
        CheckpointError: a damaged file, or thresholds that are not there.
    """
    found: set[str] = set()
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                found.update(tensors.keys())
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file} cannot be read ({error}); it is damaged or was not copied to the end: copy it again"
            ) from None
    if not files:
        return
    # By number, not by name: transformers renames some modules in the files it writes.
    layers = sum(len(site.layers) for site in sites)
    for what, ending, wanted, places in (
        ("thresholds", ".neuron.log_threshold", len(sites), "sites"),
        ("initial potentials (v_init)", ".neuron.v_init", len(sites), "sites"),
        ("offsets", ".neuron.offset", len(sites), "sites"),
        ("bias corrections", ".correction", layers, "layers"),
    ):
        there = sum(name.endswith(ending) for name in found)
        if there < wanted:
            raise CheckpointError(
                f"the checkpoint has {what} for {there} of {wanted} {places}: it is dense or incomplete. "
                "Convert the dense model with fas.convert, or copy the converted directory again"
            )


def read_config(directory: Path) -> dict[str, Any]:
    """Return config.json of a model directory.

    Raises:
        CheckpointError: missing or damaged.
    """
    path = directory / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{directory} has no config.json: it is not a model directory") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); copy or convert the model again") from None
    return config
