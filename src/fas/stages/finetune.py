"""Stage 1: full-parameter fine-tuning of the quantised network."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from fas.checks import check_choice, check_number, check_whole
from fas.surgery.parameters import undone_on_error
from fas.training.descent import check_batches
from fas.training.finetuning import tuned
from fas.types import Batches, Kept, Progress, Record, Stage

Precision = Literal["fp32", "bf16", "fp16"]
Scheduler = Literal["linear", "cosine", "constant", "constant_with_warmup"]


@dataclass(frozen=True)
class Finetune(Stage):
    """Fine-tuning of all weights and thresholds, with QCFS activations, by transformers' Trainer.

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
        scheduler: of both rates, after the warm-up.
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

    def __post_init__(self) -> None:
        counts = ["batch_size", "gradient_accumulation", "save_steps", "save_total_limit", "logging_steps"]
        for name in [*counts, *(["max_steps"] if self.max_steps is not None else [])]:
            check_whole(name, getattr(self, name))
        check_whole("seed", self.seed, 0, 2**32 - 1)
        for name in ("epochs", "learning_rate"):
            check_number(name, getattr(self, name), "a number above 0", above=True)
        for name in ("threshold_learning_rate", "spike_price", "weight_decay", "max_grad_norm"):
            check_number(name, getattr(self, name), "a number of at least 0")
        check_number("distillation", self.distillation, "a share from 0 to 1", most=1.0)
        check_number("warmup", self.warmup, "a share of at least 0 and below 1", most=1 - 2**-53)
        check_choice("scheduler", self.scheduler, get_args(Scheduler))
        check_choice("precision", self.precision, get_args(Precision))

    def run(self, model: Any, batches: Batches, progress: Progress | None = None, kept: Kept | None = None) -> Record:
        """Train on the rows of batches in memory, which have ``labels``; ``fas.finetune`` takes any data set."""
        check_batches(batches, "training")
        rows = [{name: x[i] for name, x in batch.items()} for batch in batches for i in range(len(batch["labels"]))]
        with undone_on_error(model.parameters()), tempfile.TemporaryDirectory() as directory:
            place = Path(directory) if kept is None else kept.directory / "checkpoints"
            return tuned(self, model, rows, output_dir=place, progress=progress)

    @contextmanager
    def network(self, model: Any) -> Iterator[str]:
        """Have the model run the network that is trained while the block lasts, and name it."""
        with model.simulation.using(network="quantised", observers=[]):
            yield "quantised"
