"""SpikingJelly beside us: its IF node over all steps at our sites, and its recipe for Qwen2.

Its package requires torchvision, of which many machines have no fitting build, so it is taken from a folder of
its own: ``pip install --no-deps --target DIR spikingjelly loguru requests urllib3 certifi idna
charset_normalizer`` and ``FAS_SPIKINGJELLY=DIR``. A checkout serves as well.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.suite.absent import AbsentError
from benchmarks.suite.reference import PlainNeurons
from fas.layers.population import Population

VARIABLE = "FAS_SPIKINGJELLY"


def load(module: str) -> Any:
    """Return a module of SpikingJelly's ``activation_based`` package.

    Raises:
        AbsentError: it is not there, or something that it needs is not.
    """
    folder = os.environ.get(VARIABLE)
    if folder is not None:
        if not (Path(folder) / "spikingjelly").is_dir():
            raise AbsentError(f"{VARIABLE} is {folder!r}, which holds no folder spikingjelly")
        if (Path(folder) / "torchvision").is_dir():
            raise AbsentError(
                f"{VARIABLE} names a folder that holds torchvision too, which would replace ours: remove it"
            )
        if folder not in sys.path:
            # Last, so that nothing else in the folder takes the place of what is installed.
            sys.path.append(folder)
    try:
        return importlib.import_module(f"spikingjelly.activation_based.{module}")
    except ModuleNotFoundError as error:
        if error.name == "spikingjelly":
            raise AbsentError(f"spikingjelly is not installed; {VARIABLE} can name a folder or a checkout") from None
        raise AbsentError(f"spikingjelly needs {error.name}: install it beside it, without its dependencies") from None


class JellyNeurons(PlainNeurons):
    """Neurons of one site as SpikingJelly's ``IFNode`` with soft reset, all steps in one call.

    It has one threshold for all and starts from zero, so currents are divided by ours and its state is set to v_0/θ.
    It sends no negative spikes: at a site with both signs this shows its speed and not its answer.

    Raises:
        AbsentError: no SpikingJelly.
    """

    def __init__(self, population: Population, timesteps: int, readers: int = 1) -> None:
        super().__init__(population, timesteps, readers)
        self.node: Any = load("neuron").IFNode(v_threshold=1.0, v_reset=None, step_mode="m")

    def _loop(self, x: Tensor) -> Tensor:
        drive = (x.unflatten(0, (self.timesteps, -1)) - self.offset) / self.threshold
        self.node.reset()
        self.node.v = self.v_init.expand_as(drive[0]).clone()
        return (self.node(drive) * self.threshold + self.offset).flatten(0, 1)


class Qwen2(nn.Module):
    """SpikingJelly's spiking Qwen2, called as a transformers model is.

    Args:
        dense: a Qwen2 language model of transformers.
        timesteps: T.
        ids: tokens [B, S] to calibrate on.

    Raises:
        AbsentError: no SpikingJelly, or another architecture.
    """

    def __init__(self, dense: Any, timesteps: int, ids: Tensor) -> None:
        super().__init__()
        if dense.config.model_type != "qwen2":
            raise AbsentError(f"SpikingJelly's recipe converts qwen2, this is {dense.config.model_type}")
        conversion = load("ann2snn")
        recipes = load("ann2snn.recipes")
        settings = recipes.Qwen2SNNConfig(time_steps=timesteps, calibration_levels=timesteps)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        calibration = recipes.calibrate_qwen2_snn(dense, [batch], settings)
        self.model = conversion.ModuleConverter(recipes.Qwen2SNNRecipe(calibration, settings)).convert(dense)

    def forward(
        self, input_ids: Tensor, *, past_key_values: Any = None, use_cache: bool = False, logits_to_keep: int = 0
    ) -> Any:
        """Run all time steps; its logits are those of every position, whatever is asked for."""
        # Neurons start anew with every call, as its own decoding loop has it.
        for module in self.model.modules():
            if callable(getattr(module, "reset", None)):
                module.reset()
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        mask = input_ids.new_ones(len(input_ids), past + input_ids.shape[1])
        answer = self.model(
            input_ids=input_ids, attention_mask=mask, past_key_values=past_key_values, use_cache=use_cache
        )
        return SimpleNamespace(logits=answer.logits[:, -logits_to_keep:], past_key_values=answer.past_key_values)
