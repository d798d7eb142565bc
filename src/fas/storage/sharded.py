"""A checkpoint larger than the memory: a model on the meta device, whose weights come and go in parts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.utils import OffloadedWeightsLoader, set_module_tensor_to_device
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import revert_weight_conversion
from transformers.integrations.accelerate import accelerate_disk_offload
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from fas._version import __version__
from fas.errors import CheckpointError
from fas.storage.directory import write_tensors, write_text
from fas.storage.foreign import check_finite, model_class, reading, weight_files
from fas.surgery.replace import populations, spiking_layers


class Sharded:
    """A dense transformers checkpoint in safetensors; nothing of it is in memory until it is asked for.

    Which tensor of the files belongs to which parameter is transformers' own affair (renamed layers, missing
    prefixes, tied weights): its index for offloading to the disk is used.

    Args:
        directory: ``config.json`` and safetensors, one file or several with an index.
        dtype: of the weights in memory; float32 computes fastest on a CPU, and holds bfloat16 exactly.

    Attributes:
        model: the model that config.json names, on the meta device.
        index: where each parameter lies, by its name in the model.
        files: the files of weights.
        tied: parameters that are others under a second name.

    Raises:
        CheckpointError: no safetensors, damaged files, weights that are missing or laid out otherwise (experts).
    """

    def __init__(self, directory: Path, *, dtype: torch.dtype = torch.float32) -> None:
        if not (directory / "config.json").is_file():
            raise CheckpointError(f"{directory} has no config.json: streaming reads a directory of a dense model")
        with reading(directory):
            config = transformers.AutoConfig.from_pretrained(directory, trust_remote_code=False)
        if getattr(config, "quantization_config", None) is not None:
            raise CheckpointError(f"{directory} is converted or quantised already: stream the dense model")
        self.directory = directory
        self.files, metadata = weight_files(directory)
        # What the files hold decides; transformers' own default reads it from the first of them, too.
        self.stored_dtype = str(getattr(config, "dtype", None) or torch.float32).removeprefix("torch.")
        cls = model_class(config)
        if cls is None:
            raise CheckpointError(
                f"config.json names no class of transformers (architectures: {getattr(config, 'architectures', None)})"
            )
        with reading(directory), torch.device("meta"):
            self.model: Any = cls._from_config(config, dtype=dtype).eval()
        for module in self.model.modules():
            if isinstance(module, transformers.PreTrainedModel):
                # It looks at token ids, which a probe without memory does not have.
                module.warn_if_padding_and_no_attention_mask = lambda *_: None
        if self.model.can_generate() and (directory / "generation_config.json").is_file():
            self.model.generation_config = transformers.GenerationConfig.from_pretrained(directory)
        try:
            self.index: dict[str, dict[str, str]] = accelerate_disk_offload(
                self.model,
                None,
                [str(file) for file in self.files],
                {"": "disk"},
                metadata,
                get_model_conversion_mapping(self.model),
            )
        except SafetensorError as error:
            raise CheckpointError(f"{self.files[0]} cannot be read ({error}): copy it again") from None
        self.tied: dict[str, str] = dict(self.model.all_tied_weights_keys)
        lacking = [name for name, _ in self.model.named_parameters() if name not in self.index]
        if lacking:
            raise CheckpointError(
                f"{directory} has no weights for {', '.join(lacking[:3])} ({len(lacking)} parameters) in the layout of "
                f"{type(self.model).__name__}: convert the model in memory (fas.convert), or complete the checkpoint"
            )
        self._missing = {name for name in self.model.state_dict() if name not in self.index}
        self._weights = OffloadedWeightsLoader(index=self.index)

    def settle(self) -> None:
        """Give the model what no file holds: buffers by its own rules, and neurons without thresholds."""
        for parameter in self.model.parameters():
            parameter._is_hf_initialized = True
        self.model._move_missing_keys_from_meta_to_device(self._missing, None, None, None)
        self.model._initialize_missing_keys(False)
        for population in populations(self.model).values():
            for name, start in (("log_threshold", torch.nan), ("v_init", 0.5), ("offset", 0.0)):
                _fill(population, name, start)
        for layer in spiking_layers(self.model).values():
            _fill(layer, "correction", 0.0)

    def names(self, path: str, *, below: bool = True) -> list[str]:
        """Return the parameters in the files that belong to a module, those of its children too."""
        inside = [name for name in self.index if name.startswith(f"{path}." if path else "")]
        return inside if below else [name for name in inside if "." not in name.removeprefix(f"{path}.")]

    def load(self, names: Iterable[str]) -> None:
        """Bring parameters into memory.

        Raises:
            CheckpointError: a damaged file, or a tensor of another shape than the model's or with NaN in it.
        """
        for name in names:
            file = self.index[name]["safetensors_file"]
            try:
                value = self._weights[name]
                set_module_tensor_to_device(self.model, name, "cpu", value=value)
            except (SafetensorError, ValueError) as error:
                raise CheckpointError(f"{file}: {name}: {error}") from None
            check_finite([(name, value)], file)

    def drop(self, names: Iterable[str]) -> None:
        """Take parameters out of memory, and whatever is made of them."""
        modules: dict[str, nn.Module] = {}
        for name in names:
            set_module_tensor_to_device(self.model, name, "meta")
            path = name.rpartition(".")[0]
            modules[path] = self.model.get_submodule(path)
        layers = spiking_layers(self.model)
        for path in modules:
            if path in layers:
                layers[path].reset()
                layers[path].population.reset()
                # The dense twin refers to the weights as well.
                layers[path].dense()

    def write(self, file: Path, names: Iterable[str], own: dict[str, Tensor]) -> dict[str, int]:
        """Write a shard: parameters as the files hold them, bit by bit, and tensors that conversion has added.

        Returns:
            What is in the shard by its name there, in bytes.
        """
        tensors = dict(own)
        for name in names:
            if self.tied.get(name) not in self.index:
                where = self.index[name]
                with safe_open(where["safetensors_file"], framework="pt") as source:
                    tensors[name] = source.get_tensor(where["weight_name"])
        tensors = revert_weight_conversion(self.model, tensors)
        write_tensors(file, tensors, {"format": "pt", "fas_version": __version__})
        return {name: x.numel() * x.element_size() for name, x in tensors.items()}

    def write_configuration(self, directory: Path) -> None:
        """Write ``generation_config.json`` and, last, ``config.json`` with the sites and records."""
        model = self.model
        model.config.dtype = self.stored_dtype
        model.config.architectures = [type(model).__name__]
        if model.can_generate():
            model.generation_config.save_pretrained(directory)
        model.config.save_pretrained(directory)


def write_index(directory: Path, shards: dict[str, dict[str, int]]) -> None:
    """Write the index by which ``from_pretrained`` finds every tensor, of their bytes by shard."""
    index = {
        "metadata": {"total_size": sum(sum(tensors.values()) for tensors in shards.values())},
        "weight_map": {name: file for file, tensors in shards.items() for name in tensors},
    }
    write_text(directory / SAFE_WEIGHTS_INDEX_NAME, json.dumps(index, indent=2) + "\n")


def _fill(module: nn.Module, name: str, value: float) -> None:
    like: Any = getattr(module, name)
    setattr(module, name, nn.Parameter(torch.full(like.shape, value, dtype=like.dtype)))
