"""Converted models in transformers' own loading and saving."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from torch import nn
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer

from fas.config import FASConfig
from fas.errors import CheckpointError
from fas.layers.simulation import Simulation
from fas.layers.spiking_layer import SpikingLayer
from fas.runtime.spiking import SpikingModel, make_dense, make_spiking
from fas.storage.card import is_stock, write_card
from fas.storage.checksums import write_sums
from fas.storage.directory import CARD, GUARD, check_files, is_ours, whole_directory, write_guard
from fas.storage.foreign import check_neurons
from fas.storage.origin import BASE, ORIGIN, remember_origin
from fas.surgery.attention import SPIKING_ATTENTION
from fas.surgery.replace import attach
from fas.types import OPERANDS, Record, Site

register_quantization_config("fas")(FASConfig)


class ConvertedModel(SpikingModel):
    """A converted transformers model: knows its sites and saves as one piece."""

    config: Any

    @property
    def fas_config(self) -> FASConfig:
        """What spikes and how, with the settings as they are now."""
        config: FASConfig = self.config.quantization_config
        return config

    @property
    def sites(self) -> list[Site]:
        """The sites in the order of execution."""
        return self.fas_config.sites or []

    @property
    def records(self) -> list[Record]:  # type: ignore[override]
        """What the stages did, in order."""
        return self.fas_config.records

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

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *arguments: Any, **named: Any) -> Any:
        """Change the size of the vocabulary as in transformers, unless the output layer spikes.

        Raises:
            ValueError: it does.
        """
        head = self.get_output_embeddings()
        asked = new_num_tokens is not None or named.get("pad_to_multiple_of") or any(arguments)
        if isinstance(head, SpikingLayer) and asked and new_num_tokens != len(head.weight):
            raise ValueError(
                f"the output layer spikes and was calibrated for {len(head.weight)} tokens: fas.revert(model), "
                "resize_token_embeddings on the dense model, and fas.convert again"
            )
        return super().resize_token_embeddings(new_num_tokens, *arguments, **named)

    def init_continuous_batching(self, *arguments: Any, **named: Any) -> Any:
        """Batch requests as they come, as in transformers (``generate_batch`` too): layerwise.

        Raises:
            ValueError: online, where the rows of a batch are steps too and share no paged cache.
        """
        if self.simulation.folds:
            raise ValueError(
                "continuous batching packs requests into one row, but online every row is repeated for each of "
                f"{self.timesteps} steps: set model.schedule = 'layerwise', or call generate"
            )
        return super().init_continuous_batching(*arguments, **named)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Write ``config.json``, safetensors with their checksums and a model card; whole or not at all.

        Into a directory that is there, files are moved when all have been written. Those of an earlier save are
        replaced or go; everything else stays, a ``README.md`` that this library did not write too.

        Raises:
            OSError: disk full, no permission: nothing is left behind.
        """
        target = Path(save_directory)
        if kwargs.get("push_to_hub"):
            kwargs.setdefault("repo_id", target.resolve().name)
        # transformers takes the weights of quantised models from the quantiser, not from its caller.
        self.hf_quantizer.weights = kwargs.get("state_dict")
        with whole_directory(target) as beside:
            try:
                super().save_pretrained(beside, **kwargs)
            finally:
                self.hf_quantizer.weights = None
            write_guard(beside)
            write_sums(beside)
            # Only the first of several processes writes.
            if (beside / "config.json").is_file() and not (beside / CARD).is_file():
                write_card(beside)

    def _upload_modified_files(
        self, working_dir: str | os.PathLike[str], repo_id: str, *args: Any, **kwargs: Any
    ) -> Any:
        """Send files to the hub, with our card unless the repository has one that somebody wrote.

        By now the repository's card is there, or transformers' stock one; a tokenizer's card says nothing either.
        """
        file = Path(working_dir) / CARD
        mine = is_ours(file) or is_stock(file)
        if mine or not HfApi().file_exists(repo_id, CARD, token=kwargs.get("token")):
            file.unlink(missing_ok=True)
            write_card(Path(working_dir))
        write_guard(Path(working_dir))
        write_sums(Path(working_dir))
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)


@register_quantizer("fas")
class FASQuantizer(HfQuantizer):
    """Hooks of ``from_pretrained``: spiking layers before the weights arrive, or after them."""

    requires_calibration = False
    # What save_pretrained was given to write in place of the model's own tensors.
    weights: dict[str, Any] | None = None

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

    def update_attn_implementation(self, config: Any) -> Any:
        """Let transformers find the weights, which it refuses to look for without us; it calls this before."""
        if getattr(config, "transformers_weights", None) == GUARD:
            del config.transformers_weights
        return config

    def get_state_dict_and_metadata(self, model: nn.Module) -> tuple[dict[str, Any] | None, dict[str, str]]:
        """Return the weights given to ``save_pretrained`` (gathered ones of a sharded model), and mark the file."""
        return self.weights, {"fas_version": self.quantization_config.version}

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
        else:
            check_neurons(model, str(getattr(model.config, "_name_or_path", "") or type(model).__name__))
        return model


def exchange(model: Any, config: FASConfig, mixin: type[ConvertedModel]) -> None:
    """Exchange the layers at the sites of a configuration and give the model its time steps, in place."""
    assert config.sites
    method, simulation = config.recipe, Simulation(config.begin())
    attach(model, config.sites, simulation, method.build, granularity=method.granularity, gated=method.gated)
    make_spiking(model, simulation, mixin)


def install(model: Any, config: FASConfig, quantizer: FASQuantizer | None = None) -> None:
    """Exchange the layers of a transformers model and make it a ``ConvertedModel``, in place."""
    if config.sites is None:
        config.sites = config.recipe.select(model)
    exchange(model, config, ConvertedModel)
    strict = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    model._keep_in_fp32_modules_strict = strict | {"neuron", "correction"}
    remember_origin(model.config)
    model.config.quantization_config = config
    model.config._is_quantized = True
    model.hf_quantizer = quantizer if quantizer is not None else FASQuantizer(config)
    model.is_quantized, model.quantization_method = True, "fas"


def uninstall(model: Any) -> None:
    """Turn a converted model back into the dense one that it was made of, in place."""
    make_dense(model)
    model.hf_quantizer.remove_quantization_config(model)
    model.config._is_quantized = False
    for name in (BASE, ORIGIN):
        if hasattr(model.config, name):
            delattr(model.config, name)
