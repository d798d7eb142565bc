"""Stage 1: full-parameter fine-tuning of the quantised network, and its control on the same data."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import DataCollatorWithPadding, default_data_collator

from fas.distributed import place
from fas.errors import DataError, NotCalibratedError
from fas.runtime.transformers_ import ConvertedModel, uninstall
from fas.surgery.replace import populations
from fas.training.distillation import Distillation
from fas.training.losses import mean_loss
from fas.training.run_directory import fingerprint_data, fingerprint_weights
from fas.training.trainer import Collator, train
from fas.types import Progress, Record

Precision = Literal["fp32", "bf16", "fp16"]
Scheduler = Literal["linear", "cosine", "constant", "constant_with_warmup"]


# Settings that leave the result as it is; a run may resume under others.
_FREE = ("gradient_checkpointing", "save_steps", "save_total_limit", "logging_steps", "tensorboard")


@dataclass(frozen=True)
class Finetune:
    """Fine-tuning of all weights and thresholds behind QCFS activations, by transformers' Trainer.

    The forward is the quantised network (L levels, 2.1 in DESIGN.md), whose floor passes gradients straight
    through: to the weights, to ``log_threshold`` (so θ stays positive), to ``offset`` (from clipped inputs
    only: elsewhere its two places cancel) and to ``v_init`` (from inputs inside the clip range: shifting v_0
    by a share δ of a level moves the mean output by δθ/L, which is what the straight-through gradient
    says). v_0/θ is brought back to [0, 1) after every step.

    Attributes:
        epochs: passes over the data; a fraction ends within one.
        max_steps: optimiser steps instead of epochs.
        learning_rate: peak of the schedule, for the weights (AdamW).
        threshold_learning_rate: peak for thresholds, offsets, initial potentials and bias corrections.
        spike_price: added to the loss: so many nats per spike per neuron and window, as the spiking network at its
            T would send them. A few hundred steps need a price several times that of calibration, and a small
            ``threshold_learning_rate``: moving thresholds wake silent neurons. The control pays nothing.
        distillation: weight w, from 0 to 1, of what the dense network says: the loss is (1 − w) · that of the labels
            + w · KL(dense ‖ quantised) over the same targets. The dense network is a copy of the model's weights as
            they are when the stage begins, in memory beside it. The control learns from the labels alone.
        batch_size: rows per device and forward pass.
        gradient_accumulation: forward passes per step. Equals one pass on a batch as many times larger where
            all passes hold the same number of targets, else each pass weighs the same.
        warmup: share of all steps over which the rate rises from 0.
        weight_decay: of weight matrices; biases, norms and parameters of neurons have none.
        max_grad_norm: gradients are scaled down to this norm; 0 leaves them.
        scheduler: of both rates, behind the warm-up.
        precision: of the forward pass; weights in float32 stay so, thresholds always.
        gradient_checkpointing: recompute activations in the backward pass: less memory, more time.
        seed: of the order of the data and of dropout; the global generators are seeded with it.
        save_steps: steps between checkpoints.
        save_total_limit: checkpoints kept.
        logging_steps: steps between logged losses.
        tensorboard: write events to ``output_dir/runs``.

    Raises:
        ValueError: a value outside its range; the message names it.

    Source: FAS (arXiv 2502.04405), stage 1; QCFS after Bu et al., ICLR 2022 (arXiv 2303.04347).
    Distillation: Hinton et al. 2015 (arXiv 1503.02531) at temperature 1.
    Deviation: thresholds have a learning rate of their own.

    Example:
        >>> Finetune(max_steps=100, learning_rate=1e-4).scheduler
        'linear'
    """

    epochs: float = 1.0
    max_steps: int | None = None
    learning_rate: float = 5e-5
    threshold_learning_rate: float = 1e-3
    spike_price: float = 0.0
    distillation: float = 0.0
    batch_size: int = 8
    gradient_accumulation: int = 1
    warmup: float = 0.0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    scheduler: Scheduler = "linear"
    precision: Precision = "fp32"
    gradient_checkpointing: bool = False
    seed: int = 0
    save_steps: int = 500
    save_total_limit: int = 2
    logging_steps: int = 10
    tensorboard: bool = False

    trains: ClassVar[bool] = True
    _stage: ClassVar[str] = "finetune"

    def __post_init__(self) -> None:
        """Check every field."""
        counts = ["batch_size", "gradient_accumulation", "save_steps", "save_total_limit", "logging_steps"]
        for name in [*counts, *(["max_steps"] if self.max_steps is not None else [])]:
            _check(name, getattr(self, name), "a whole number of at least 1", lambda v: v >= 1, int)
        _check("seed", self.seed, "a whole number from 0 to 2**32 - 1", lambda v: 0 <= v < 2**32, int)
        for name in ("epochs", "learning_rate"):
            _check(name, getattr(self, name), "a number above 0", lambda v: 0 < v < float("inf"))
        for name in ("threshold_learning_rate", "spike_price", "weight_decay", "max_grad_norm"):
            _check(name, getattr(self, name), "a number of at least 0", lambda v: 0 <= v < float("inf"))
        _check("distillation", self.distillation, "a share from 0 to 1", lambda v: 0 <= v <= 1)
        _check("warmup", self.warmup, "a share of at least 0 and below 1", lambda v: 0 <= v < 1)
        for name, choices in (("scheduler", get_args(Scheduler)), ("precision", get_args(Precision))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}")

    def run(
        self,
        model: Any,
        dataset: Any,
        *,
        output_dir: str | Path,
        eval_dataset: Any = None,
        collator: Collator | None = None,
        tokenizer: Any = None,
        resume: bool = True,
        progress: Progress | None = None,
        callbacks: Sequence[Any] = (),
    ) -> Record:
        """Fine-tune the quantised network in place; afterwards the model runs the network it ran before.

        Checkpoints (config, safetensors, and what Trainer adds: ``optimizer.pt``, ``scheduler.pt``,
        ``rng_state.pth``, ``training_args.bin``, pickles that Trainer itself reads as plain tensors only) go
        to ``output_dir``, beside ``finetune.json``, which says what made them. A run that finds its own
        checkpoints goes on from the last complete one and ends with the very weights of an uninterrupted
        run on the same machine; give it the model that the run started from.

        Args:
            model: a converted model whose thresholds are set.
            dataset: rows as the model's forward takes them, with ``labels``: ``language_modelling(rows)``,
                ``fas.data.table.tokenise_table(…)``, or any data set with a length.
            output_dir: directory of the run.
            eval_dataset: rows on which the mean loss is taken before and after.
            collator: makes a batch of rows; by ``tokenizer``, or by stacking, if None.
            tokenizer: pads rows of unequal length.
            resume: go on from checkpoints in ``output_dir``; False removes them.
            progress: told after each step.
            callbacks: transformers' TrainerCallbacks.

        Returns:
            What was done, to be kept in ``model.records``: steps, seconds of this call, last logged training
            loss, losses on ``eval_dataset``, and how far each site's thresholds moved.

        Raises:
            ValueError: a model that is not converted, half-precision weights, fp16 without an accelerator.
            NotCalibratedError: thresholds that were never set.
            DataError: no rows, rows without labels, rows longer than the model's context; distillation of a
                regression.
            CheckpointError: ``output_dir`` holds another run; the field that differs is named.
            MissingExtraError: TensorBoard asked for and not installed.
            FASError: a loss that is not finite.
        """
        _require_thresholds(model)
        _check_precision(self, model)
        _check_data(model, dataset)
        batch = _collator(collator, tokenizer)
        before = {path: p.log_threshold.detach().clone() for path, p in populations(model).items()}
        with self._network(model) as network:
            results = train(
                self, model, dataset, Path(output_dir), batch,
                description={**_description(self, model, dataset), "network": network},
                evaluate=_evaluation(self, model, eval_dataset, batch), distillation=_distillation(self, model),
                resume=resume, progress=progress, callbacks=callbacks,
            )  # fmt: skip
        sites = {
            path: {
                "threshold_mean": float(p.threshold.detach().mean()),
                "threshold_log_change": float((p.log_threshold.detach() - before[path]).abs().mean()),
            }
            for path, p in populations(model).items()
        }
        return Record(self._stage, asdict(self), results, sites, self.trains)

    @contextmanager
    def _network(self, model: Any) -> Iterator[str]:
        """Have the model run the network that is trained while the block lasts, and name it."""
        with model.simulation.using(network="quantised", observers=[]):
            yield "quantised"


def finetune(
    model: Any,
    dataset: Any,
    settings: Finetune | None = None,
    *,
    output_dir: str | Path,
    eval_dataset: Any = None,
    collator: Collator | None = None,
    tokenizer: Any = None,
    control: bool = True,
    resume: bool = True,
    progress: Progress | None = None,
    callbacks: Sequence[Any] = (),
) -> tuple[Record, Any]:
    """Fine-tune a converted model, then the dense model it came from, as control, on the same data.

    A spiking network fine-tuned on data compares fairly only with the dense network fine-tuned on the same
    data. The control starts from a dense copy taken before, and sees the same rows in the same order for
    the same steps under the same settings; only the neurons' parameters are not there. One trains after
    the other; the waiting copy of the weights lies in the main memory. Both resume.

    Args:
        model: a converted model whose thresholds are set.
        dataset: see ``Finetune.run``, as for the other arguments.
        settings: the stage; its defaults if None.
        output_dir: directory of the run; the control is in ``control`` below it, ready for
            ``from_pretrained``.
        eval_dataset: rows on which the mean losses of both are taken, before and after.
        collator: makes a batch of rows.
        tokenizer: pads rows of unequal length.
        control: False trains no control.
        resume: go on from checkpoints in ``output_dir``; False removes them.
        progress: told after each step of both.
        callbacks: transformers' TrainerCallbacks, for the quantised network; where they stop it early, the
            control stops at the same step.

    Returns:
        The record, also appended to ``model.records``, with the figures of the control under ``control_…``,
        and the control (None without one).

    Raises:
        As ``Finetune.run``.

    Example:
        >>> import fas, tempfile, torch
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50))
        >>> rows = torch.arange(40).view(4, 10)
        >>> model = fas.convert(model, fas.FAS(timesteps=4), calibration=[{"input_ids": rows}])
        >>> record, control = finetune(
        ...     model, language_modelling(rows), Finetune(max_steps=2), output_dir=tempfile.mkdtemp()
        ... )
        >>> record.results["steps"], record.results["control_steps"]
        (2.0, 2.0)
    """
    settings = Finetune() if settings is None else settings
    _require_thresholds(model)
    dense = _dense_copy(model) if control else None
    record = settings.run(
        model, dataset, output_dir=output_dir, eval_dataset=eval_dataset, collator=collator,
        tokenizer=tokenizer, resume=resume, progress=progress, callbacks=callbacks,
    )  # fmt: skip
    if dense is not None:
        directory, batch = Path(output_dir) / "control", _collator(collator, tokenizer)
        settings = replace(settings, distillation=0.0)
        figures = train(
            settings, dense, dataset, directory, batch,
            description=_description(settings, dense, dataset),
            evaluate=_evaluation(settings, dense, eval_dataset, batch),
            resume=resume, progress=progress, stop_at=int(record.results["steps"]),
        )  # fmt: skip
        if place()[0] == 0:
            dense.save_pretrained(directory)
        results = {**record.results, **{f"control_{name}": value for name, value in figures.items()}}
        record = replace(record, results=results)
    model.records.append(record)
    return record, dense


def language_modelling(rows: Tensor) -> Dataset[dict[str, Tensor]]:
    """Return windows of token ids [n, L] as a data set for causal language modelling: labels = input.

    Raises:
        DataError: no rows, or rows too short to predict a token from another.
    """
    if rows.ndim != 2 or len(rows) == 0 or rows.shape[1] < 2:
        raise DataError(
            f"rows has shape {list(rows.shape)}: expected windows [n, L] with n ≥ 1 and L ≥ 2, as "
            "fas.data.text.windows cuts them"
        )
    return _Windows(rows)


class _Windows(Dataset[dict[str, Tensor]]):
    def __init__(self, rows: Tensor) -> None:
        self.rows = rows.long().cpu().contiguous()
        self.fingerprint = hashlib.sha256(self.rows.numpy().tobytes()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


def _evaluation(settings: Finetune, model: Any, rows: Any, collator: Collator) -> Callable[[], float] | None:
    return None if rows is None else partial(mean_loss, model, rows, collator, settings.batch_size)


def _distillation(settings: Finetune, model: Any) -> Distillation | None:
    return Distillation(_dense_copy(model), settings.distillation) if settings.distillation else None


def _description(settings: Finetune, model: Any, dataset: Any) -> dict[str, Any]:
    """Return what the result depends on, in JSON types."""
    fields = {name: value for name, value in asdict(settings).items() if name not in _FREE}
    network: dict[str, Any] = {"network": "dense"}
    if isinstance(model, ConvertedModel):
        sites = [[asdict(site), str(model.fas_config.recipe.build(site))] for site in model.sites]
        digest = hashlib.sha256(json.dumps(sites).encode()).hexdigest()[:16]
        network = {"network": "quantised", "levels": model.levels, "sites": digest}
    return {
        **fields,
        "data": fingerprint_data(dataset),
        "model": type(model).__name__,
        "weights": fingerprint_weights(model),
        **network,
    }


def _dense_copy(model: Any) -> Any:
    # What a population remembers of its last input cannot be copied while it carries a gradient.
    model.reset()
    dense = copy.deepcopy(model)
    uninstall(dense)
    return dense.cpu()


def _collator(collator: Collator | None, tokenizer: Any) -> Collator:
    if collator is not None:
        return collator
    if tokenizer is None:
        return default_data_collator
    if tokenizer.pad_token is None:
        raise DataError(
            f"{type(tokenizer).__name__} has no padding token: set tokenizer.pad_token = tokenizer.eos_token "
            "and model.config.pad_token_id = tokenizer.pad_token_id"
        )
    return DataCollatorWithPadding(tokenizer)


def _require_thresholds(model: Any) -> None:
    if not isinstance(model, ConvertedModel):
        raise ValueError(f"{type(model).__name__} is not converted; call fas.convert first")
    for path, population in populations(model).items():
        if not population.is_set:
            raise NotCalibratedError(
                f"site {path} has no thresholds yet, and fine-tuning starts from some: run "
                "fas.calibrate(model, data) or the stage SetThresholds before"
            )


def _check_precision(settings: Finetune, model: nn.Module) -> None:
    half = [name for name, parameter in model.named_parameters() if parameter.dtype == torch.float16]
    if half:
        raise ValueError(
            f"{half[0]} is float16, whose steps are too coarse to train: load the model with "
            "dtype=torch.float32 and choose precision='fp16' or 'bf16' for the arithmetic"
        )
    if settings.precision == "fp16" and not torch.accelerator.is_available():
        raise ValueError("precision is 'fp16', which needs an accelerator; choose 'bf16' or 'fp32' on a CPU")


def _check_data(model: Any, dataset: Any) -> None:
    if len(dataset) == 0:
        raise DataError("the data set has no rows; give at least one")
    row = dataset[0]
    if "labels" not in row:
        raise DataError(
            f"rows have {sorted(row)} but no 'labels': language_modelling(rows) adds those of language models"
        )
    context = getattr(model.config, "max_position_embeddings", None)
    if context is not None and len(row.get("input_ids", ())) > context:
        raise DataError(
            f"rows have {len(row['input_ids'])} tokens but {type(model).__name__} has {context} positions: "
            "cut shorter ones"
        )


def _check(name: str, value: Any, rule: str, holds: Callable[[Any], bool], kind: Any = (int, float)) -> None:
    if isinstance(value, bool) or not isinstance(value, kind) or not holds(value):
        raise ValueError(f"{name} is {value!r}; expected {rule}")
