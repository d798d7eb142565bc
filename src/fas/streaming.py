"""Converting a checkpoint that is larger than the memory, block by block."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fas._version import __version__
from fas.calibration.layout import observe
from fas.calibration.needs import tell
from fas.calibration.residence import Finished, Residence
from fas.config import FASConfig
from fas.data.for_model import (
    Batches,
    Calibration,
    Sample,
    batches_given,
    default_data,
    is_classifier,
    name_of_data,
    training_rows,
)
from fas.data.text import batches as batches_of
from fas.distributed import place
from fas.errors import CheckpointError, SiteError
from fas.loading import Loaded, location, tokenizer_of
from fas.methods.fas import FAS
from fas.runtime.transformers_ import install
from fas.stages.calibrate import Calibrate
from fas.stages.set_thresholds import SetThresholds
from fas.storage.card import write_card
from fas.storage.checksums import write_sums
from fas.storage.digest import digest, pieces, states
from fas.storage.directory import put, read_config, write_guard
from fas.storage.sharded import Sharded
from fas.surgery.probe import evaluating, hooked, probe_inputs
from fas.types import Method, Progress, Record, Stage

# Share of the machine's memory that weights may fill and still leave room for what calibration records.
_ROOM = 0.7


def stream(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    method: Method | None = None,
    *,
    calibration: Calibration | None,
    tokenizer: Any = None,
    sample: Sample | None = None,
    budget: int = 1 << 31,
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
    told: Callable[[Finished], None] | None = None,
) -> list[Record]:
    """Convert and calibrate a checkpoint that is larger than the memory, block by block, into a directory.

    In memory are one block, or what lies before or after the blocks, and the activations of one site. A finished
    block is written with its weights as they were, bit by bit. The parameters of neurons are those that ``convert``
    would find in a model of the same ``dtype``.

    The work lies in ``<out>.partial``, with a journal. The same call resumes after the last block that is finished
    there, however the one before ended, and arrives at the same files; a call with other arguments is refused.
    ``out`` appears when everything is written, and ``<out>.partial`` goes.

    Args:
        source: directory of a dense transformers model in safetensors, whose blocks hand over their hidden state alone.
        out: directory to write; a converted model there is replaced.
        method: the recipe; FAS at T = 8 by default. It may have one stage, Calibrate or SetThresholds.
        calibration: text or inputs of the model's forward, as ``fas.convert`` takes them; None: the model's own data.
        tokenizer: written beside the model; where calibration is text, the source's own if None.
        sample: how much of the text, in windows of what length; 4,096 tokens if None.
        budget: bytes of hidden states that are held in memory; all are on the disk besides.
        dtype: in which a block computes.
        progress: told after each site.
        told: told after each block: seconds, an estimate for the rest, peak memory.

    Returns:
        What each stage did.

    Raises:
        CheckpointError: a source that is damaged, converted already or not in safetensors.
        SiteError: no place that could spike, or a model that does not come apart into blocks.
        ValueError: a method that needs the whole model (rotation, gated populations, fine-tuning).
        CalibrationError: data on which the model yields NaN or infinite values.
        FASError: ``<out>.partial`` holds the beginning of another conversion.

    Example:
        >>> records = fas.stream("opt-6.7b", "opt-snn", fas.FAS(), calibration=batches)  # doctest: +SKIP
    """
    method = FAS() if method is None else method
    config = FASConfig(method)
    stages = _stages(config)
    target = Path(out).resolve()
    partial = target.with_name(f"{target.name}.partial")
    found = location(str(source))
    if found.gguf_file is not None or not Path(found.name).is_dir():
        raise CheckpointError(f"{source} is not a directory of safetensors, which streaming reads: download the model")
    given = None if calibration is None else batches_given(calibration)
    tokenizer = tokenizer_of(found) if tokenizer is None and given is None else tokenizer
    sharded = Sharded(Path(found.name), dtype=dtype)
    model = sharded.model
    loaded = Loaded(str(source), model, tokenizer)
    _check_model(loaded, given)
    config.data = default_data(loaded) if calibration is None else name_of_data(calibration)
    batches: Batches
    if given is None:
        sample = sample or Sample()
        batches = batches_of(training_rows(loaded, calibration or config.data, sample), sample.batch_size)
    else:
        batches = given
    config.sites = method.select(model)
    tell("streaming", model, batches, method, streamed=True, budget=budget)
    install(model, config)
    with evaluating(model), model.simulation.using(network="ann"):
        layout = observe(model, lambda: model(**probe_inputs(model)))
    sharded.settle()
    fingerprint = _fingerprint(sharded, config, batches, dtype)
    residence = Residence(sharded, layout, partial, fingerprint, budget=budget, told=told)
    if residence.has_moved:
        # Interrupted while the work was being cleared away.
        shutil.rmtree(partial)
        if (target / "config.json").is_file():
            return FASConfig(**read_config(target)["quantization_config"]).records
        residence = Residence(sharded, layout, partial, fingerprint, budget=budget, told=told)
    with hooked(residence.watch()):
        config.records.extend(stage.run(model, batches, progress, kept=residence) for stage in stages)
    residence.close()
    written = partial / "model"
    if tokenizer is not None:
        tokenizer.save_pretrained(written)
    sharded.write_configuration(written)
    for complete in (write_guard, write_card, write_sums):
        complete(written)
    put(written, target)
    shutil.rmtree(partial)
    return config.records


def is_large(model: str) -> bool:
    """Whether the safetensors of a directory would fill most of this machine's memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return sum(file.stat().st_size for file in Path(location(model).name).glob("*.safetensors")) > _ROOM * memory


def _stages(config: FASConfig) -> list[Stage]:
    """Return the stages of a method; refuse one that cannot be streamed, and several processes."""
    stages = config.recipe.stages()
    asked = [name for name in ("gated", "spike_price", "spikes") if getattr(config.recipe, name, False)]
    if len(stages) != 1 or not isinstance(stages[0], Calibrate | SetThresholds) or asked:
        names = asked or [type(stage).__name__ for stage in stages]
        raise ValueError(
            f"method {config.method} with {', '.join(names)} needs the model as a whole: streaming takes one "
            "stage, Calibrate or SetThresholds, and neither gated populations nor a price of spikes; convert in memory "
            "(fas.convert)"
        )
    if place()[1] > 1:
        raise ValueError(f"streaming runs in one process, and {place()[1]} have been started: start one")
    return list(stages)


def _check_model(loaded: Loaded, given: Batches | None) -> None:
    """Refuse a model whose blocks read more than the hidden state before them, and one without data to read."""
    model, why = loaded.model, None
    if model.config.is_encoder_decoder:
        why = "its decoder reads what its encoder returns"
    elif loaded.reads_images_and_text:
        why = "it reads images beside text"
    elif given is None and is_classifier(loaded):
        why = "it labels sentences, for which it reads no data by name"
    if why is not None:
        raise SiteError(f"{type(model).__name__} cannot be streamed: {why}. Convert it in memory (fas.convert)")


def _fingerprint(sharded: Sharded, config: FASConfig, calibration: Batches, dtype: torch.dtype) -> dict[str, Any]:
    """Return what a call that resumes must have in common with the one before."""
    source = sharded.directory
    # Two words each: the options of methods, of one word, come between.
    return {
        "source directory": str(source.resolve()),
        "source files": states(sharded.files),
        "source configuration": digest([(source / "config.json").read_bytes()]),
        "method name": config.method,
        **{key: value for key, value in config.to_dict().items() if key not in ("sites", "records", "version")},
        "calibration data": digest(pieces(calibration)),
        "compute dtype": str(dtype),
        "fas version": __version__,
        "torch version": torch.__version__,
    }
