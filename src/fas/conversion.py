"""The verbs on models: convert, calibrate, and back."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fas import registry
from fas._version import __version__
from fas.calibration.needs import tell
from fas.config import FASConfig
from fas.data.for_model import (
    Batches,
    Calibration,
    Sample,
    batches_given,
    calibration_batches,
    default_data,
    name_of_data,
    warn_of_batches,
)
from fas.distributed import place
from fas.loading import Loaded
from fas.memory import fewer_rows
from fas.methods.fas import FAS
from fas.runtime.plain import ConvertedModule, install_module, uninstall_module
from fas.runtime.transformers_ import ConvertedModel, install, uninstall
from fas.stages.align import Align
from fas.storage.digest import digest, pieces
from fas.storage.foreign import check_generation, check_parameters
from fas.storage.resume import Run
from fas.surgery.left_dense import in_words, left_dense
from fas.surgery.probe import is_plain, reads_images_and_text
from fas.types import Method, Progress, Record, Stage

logger = logging.getLogger(__name__)

# A share of the multiply-adds that should not stay dense unnoticed.
_NOTABLE = 0.05


def convert(
    model: nn.Module,
    method: Method | None = None,
    *,
    calibration: Calibration | None = None,
    tokenizer: Any = None,
    sample: Sample | None = None,
    probe: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Any:
    """Turn a pretrained transformer or convolutional network into a spiking network, in place.

    The model keeps its class, its weights and their names; linear layers at the method's sites are driven
    by spikes from now on. Without calibration data it refuses to run as a spiking network before ``calibrate``.

    A plain module (torchvision, timm, own) needs ``probe``; its batches are dictionaries by the
    names of its forward's arguments (``{"x": images}``), and its batch normalisation is folded into the layers before
    it, so that ``revert`` gives the same function without it.

    Args:
        model: a transformers model, or a plain module.
        method: the recipe; FAS at T = 8 by default.
        calibration: text by name (``wikitext``, a file, a directory, a hub data set), documents, or a list of inputs.
        tokenizer: of the model, where calibration is text; None takes the one that lies where the model came from.
        sample: how much of the text, in windows of what length; 4,096 tokens if None.
        probe: a batch of one that the model accepts, where the default probe does not fit; a plain module has none.
        progress: told what is done, with parts done and in all.

    Returns:
        The same model.

    Raises:
        ValueError: a model that is converted already.
        SiteError: no place that could spike.
        CheckpointError: a parameter with NaN or infinite values; it is named.
        TypeError: calibration data of another kind; the message says what to pass.
        DataError: no data of that name.
        CalibrationError: data on which the model yields NaN or infinite values.

    Example:
        >>> import fas, torch
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50))
        >>> data = [{"input_ids": torch.arange(20).view(2, 10)}]
        >>> snn = fas.convert(model, fas.FAS(timesteps=8, coverage="mlp"), calibration=data)
        >>> snn(input_ids=data[0]["input_ids"]).logits.shape
        torch.Size([2, 10, 50])
    """
    if isinstance(model, ConvertedModel):
        raise ValueError("the model is converted already; fas.revert(model) gives the dense one back")
    check_parameters(model, type(model).__name__)
    check_generation(model)
    if calibration is not None:
        batches = _batches(model, calibration, tokenizer, sample)
    method = FAS() if method is None else method
    config = FASConfig(method)
    config.data = name_of_data(calibration)
    if probe is None and calibration is not None and batches and reads_images_and_text(model):
        probe = {name: value for name, value in batches[0].items() if name != "labels"}
    config.sites = method.select(model, probe)
    if is_plain(model):
        install_module(model, config, probe)
    else:
        install(model, config)
    config.left_dense = left_dense(model, probe)
    loud = config.recipe.coverage != "mlp" and not config.recipe.exclude
    large = loud and sum(config.left_dense.values()) > _NOTABLE
    logger.log(logging.WARNING if large else logging.INFO, "%s", in_words(config.left_dense))
    if calibration is not None:
        _run_stages(model, batches, None, progress)
    return model


def calibrate(
    model: Any,
    calibration: Calibration,
    *,
    tokenizer: Any = None,
    sample: Sample | None = None,
    keep: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> list[Record]:
    """Run the stages of the model's method that need no training, in place.

    Args:
        model: a converted model.
        calibration: as ``convert`` takes it.
        tokenizer: as ``convert`` takes it.
        sample: as ``convert`` takes it.
        keep: directory for what is found site by site. The same call with an equal model resumes after what a call
            that was interrupted has left there, and ends with the same parameters, bit for bit. Remove it when the
            model is saved. Of several processes none keeps anything.
        progress: told what is done, with parts done and in all.

    Returns:
        What each stage did.

    Raises:
        ValueError: a model that is not converted; one that is trained, of a method that only sets thresholds.
        CheckpointError: a parameter with NaN or infinite values; it is named.
        CalibrationError: no data, or NaN or infinite activations (the layer is named).

    Example:
        >>> fas.calibrate(model, batches)[0].results["tokens"]  # doctest: +SKIP
        4096
    """
    if not isinstance(model, ConvertedModel):
        raise ValueError(f"{type(model).__name__} is not converted; call fas.convert first")
    check_parameters(model, type(model).__name__)
    check_generation(model)
    if batches_given(calibration) is not None:
        return _run_stages(model, _batches(model, calibration, tokenizer, sample), keep, progress)
    return calibrate_on(Loaded.of(model, tokenizer), calibration, sample or Sample(), keep=keep, progress=progress)


def calibrate_on(
    loaded: Loaded,
    data: Calibration | None,
    sample: Sample,
    *,
    keep: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> list[Record]:
    """Do as ``calibrate`` with data by name or as documents, in batches of fewer rows where memory runs out.

    Without ``data`` it takes those that belong to the model.
    """
    model, source = loaded.model, default_data(loaded, None) if data is None else data
    # A stage before the one that runs out of memory has changed the weights, and must not do so twice.
    alone = len(stages_of(model)) == 1
    while True:
        batches = calibration_batches(loaded, source, sample)
        warn_of_batches(batches, getattr(model, "config", None))
        tell("calibration", model, batches)
        model.fas_config.data = name_of_data(source) or model.fas_config.data
        try:
            return _run_stages(model, batches, keep, progress)
        except (RuntimeError, MemoryError) as error:
            sample = replace(sample, batch_size=fewer_rows(sample.batch_size if alone else 1, error))


def _batches(model: Any, calibration: Calibration, tokenizer: Any, sample: Sample | None) -> Batches:
    """Return calibration data as inputs of the model; a tokenizer is read for text only."""
    given = batches_given(calibration)
    batches = given or calibration_batches(Loaded.of(model, tokenizer), calibration, sample or Sample())
    warn_of_batches(batches, getattr(model, "config", None))
    return batches


def _run_stages(
    model: Any, batches: Batches, keep: str | os.PathLike[str] | None, progress: Progress | None
) -> list[Record]:
    """Run what is left of the stages of a converted model whose parameters are finite."""
    stages, run = stages_of(model), None
    if keep is not None and place()[1] == 1:
        about = _about(model, stages, batches)
        run = Run(Path(keep) / "calibration.jsonl", about)
    records = [
        stage.run(model, batches, progress, kept=None if run is None else run.part(f"{i} {type(stage).__name__}"))
        for i, stage in enumerate(stages)
    ]
    model.records.extend(records)
    return records


def _about(model: Any, stages: Sequence[Stage], batches: Batches) -> dict[str, Any]:
    """Return what the result of calibration depends on, in JSON types."""
    return {
        "stages": [[type(stage).__name__, asdict(stage)] for stage in stages],  # type: ignore[call-overload]
        "timesteps": model.timesteps,
        "levels": model.levels,
        "trained": model.is_trained,
        "method": model.fas_config.method,
        "options": str(model.fas_config.recipe),
        "data": digest(pieces(batches)),
        "weights": digest(pieces([model.state_dict()])),
        "versions": {"fas": __version__, "torch": torch.__version__},
    }


def stages_of(model: Any) -> list[Stage]:
    """Return the stages of a model's method that are left to run after what has been trained.

    Raises:
        ValueError: there were some, and none is left.
    """
    stages, method = model.fas_config.recipe.stages(), model.fas_config.method
    left = [stage for stage in stages if not (stage.prepares and model.is_trained)]
    if stages and not left:
        raise ValueError(
            f"calibration of method {method!r} sets thresholds again, and these have been trained: run the model as it "
            "is, or convert the dense model again"
        )
    return left


def losses_of(method: Method, seed: int = 0) -> Align:
    """Return the losses that may end calibration: the method's own, if it has some."""
    losses: Align = getattr(method, "losses", Align)(seed=seed)
    return losses


def revert(model: Any) -> Any:
    """Turn a converted model back into the dense one, in place, with its present weights.

    Raises:
        ValueError: a model that is not converted.

    Example:
        >>> dense = fas.revert(model)  # doctest: +SKIP
    """
    if not isinstance(model, ConvertedModel):
        raise ValueError(f"{type(model).__name__} is not converted")
    if isinstance(model, ConvertedModule):
        uninstall_module(model)
    else:
        uninstall(model)
    return model


def name_of(method: Method) -> str:
    """Return the name of a method: its file in ``fas.methods``, ``module:class`` of one that stands elsewhere."""
    return registry.name_of("methods", type(method))
