"""Transformers' Trainer for quantised networks: threshold group, finite losses, sharded weights."""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from fas.distributed import PATIENCE, check_same, first_says, lost_named, place
from fas.errors import CalibrationError, CheckpointError, MissingExtraError
from fas.layers.once import Once
from fas.layers.population import Population
from fas.runtime.transformers_ import ConvertedModel
from fas.storage.digest import digest, digest_rows, pieces
from fas.surgery.replace import neuron_parameters, populations
from fas.surgery.sites import block_of
from fas.training.descent import bound_potentials
from fas.training.distillation import Distillation
from fas.training.losses import mean_loss
from fas.training.run_directory import begin, state_of, step_of
from fas.training.sharding import prepare_sharding, shards_weights, take_weights
from fas.training.spike_penalty import Penalty, penalised
from fas.types import Progress

if TYPE_CHECKING:
    from fas.stages.finetune import Finetune

logger = logging.getLogger(__name__)

Collator = Callable[[list[Any]], dict[str, Any]]
# Settings that leave the result as it is; a run may resume under others.
_FREE = ("gradient_checkpointing", "save_steps", "save_total_limit", "logging_steps", "tensorboard")


class ThresholdTrainer(Trainer):
    """Trainer with a learning rate of its own for the parameters that only the quantised network has.

    Args:
        threshold_learning_rate: for ``log_threshold``, ``v_init``, ``offset`` and ``correction``, which
            get no weight decay: it would pull θ towards 1 and μ towards 0.
        penalty: what spikes cost, added to the model's loss.
        distillation: what is learnt from a dense network beside the labels.
        arguments: as for ``transformers.Trainer``.

    Raises:
        CalibrationError: a loss that is not finite; Trainer itself would log an average in its place and continue.
        CheckpointError: a checkpoint that does not fit the model; Trainer itself would only warn.
    """

    optimizer: Any

    def __init__(
        self,
        *,
        threshold_learning_rate: float,
        penalty: Penalty | None = None,
        distillation: Distillation | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self.penalty, self.distillation = penalty, distillation
        self.threshold_learning_rate = threshold_learning_rate
        # Trainer believes that a forward with **kwargs divides its loss by the targets of all accumulated
        # batches; classification heads do not, and their gradient would grow with the accumulation.
        self.model_accepts_loss_kwargs = False
        # Library code logs; Trainer would print.
        self.remove_callback(PrinterCallback)

    def create_optimizer(self, model: nn.Module | None = None) -> Any:
        """Return the optimiser over three groups: with weight decay, without, and of the neurons."""
        if self.optimizer is None:
            source = self.model if model is None else model
            neurons, decaying = neuron_parameters(source), set(self.get_decay_parameter_names(source))
            groups: list[dict[str, Any]] = [
                {"params": [], "weight_decay": self.args.weight_decay},
                {"params": [], "weight_decay": 0.0},
                {"params": [], "weight_decay": 0.0, "lr": self.threshold_learning_rate},
            ]
            for name, parameter in source.named_parameters():
                if parameter.requires_grad:
                    groups[2 if name in neurons else int(name not in decaying)]["params"].append(parameter)
            kind, arguments = self.get_optimizer_cls_and_kwargs(self.args, source)
            self.optimizer = kind([group for group in groups if group["params"]], **arguments)
        return self.optimizer

    def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **named: Any) -> Any:
        """Return the loss, distilled, and what spikes cost; training asks for no outputs beside it."""
        if self.distillation is None:
            loss = super().compute_loss(model, inputs, *arguments, **named)
        else:
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **named)
            loss = self.distillation.mixed(loss, inputs, outputs.logits)
        return loss if self.penalty is None else loss + self.penalty.cost()

    def compute_loss_context_manager(self) -> Any:
        """Return where the loss is computed: under autocast, which accelerate hangs around unsharded models only."""
        return self.accelerator.autocast() if self.is_fsdp_enabled else super().compute_loss_context_manager()

    def training_step(self, *arguments: Any, **named: Any) -> Tensor:
        """Run one forward and backward pass, and stop at a loss that is not finite."""
        loss: Tensor = super().training_step(*arguments, **named)
        if not bool(loss.isfinite().all()):
            raise CalibrationError(
                f"the loss is {float(loss):g} after {self.state.global_step} steps (learning_rate "
                f"{self.args.learning_rate:g}, threshold_learning_rate {self.threshold_learning_rate:g}): "
                "lower them or lengthen the warm-up"
            )
        return loss

    def _save_rng_state(self, output_dir: str) -> None:
        """Let no process write that a checkpoint is complete before each has written its part."""
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Refuse a checkpoint that leaves parameters of the model as they were."""
        tied = set(getattr(self.model, "all_tied_weights_keys", None) or ())
        missing = [name for name in load_result.missing_keys if name not in tied]
        if missing or load_result.unexpected_keys:
            raise CheckpointError(
                f"the checkpoint does not fit {type(self.model).__name__} (missing: {missing[:3]}, unknown: "
                f"{load_result.unexpected_keys[:3]}); start from the model that the run started from"
            )


class Watch(TrainerCallback):
    """Keeps v_0/θ in [0, 1), logs, reports progress, and stops at a step."""

    def __init__(self, model: nn.Module, label: str, progress: Progress | None, stop_at: int | None) -> None:
        # Not the parameters: sharding puts others in their places.
        self.neurons = [m for m in model.modules() if isinstance(m, Population)]
        self.label, self.progress, self.stop_at = label, progress, stop_at

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Bring initial potentials back below the threshold, where the closed forms over time hold."""
        bound_potentials(self.neurons)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Report the step; the last one is always logged and saved."""
        if self.progress is not None:
            self.progress(self.label, state.global_step, state.max_steps)
        if state.global_step == self.stop_at:
            control.should_training_stop = True
        if state.global_step >= state.max_steps or state.global_step == self.stop_at:
            control.should_log = control.should_save = True
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Hand what Trainer measured to the library's log."""
        logger.info("%s, step %d of %d: %s", self.label, state.global_step, state.max_steps, logs)


def train(
    settings: Finetune,
    model: Any,
    dataset: Any,
    directory: Path,
    collator: Collator,
    *,
    network: str,
    eval_dataset: Any,
    resume: bool,
    progress: Progress | None,
    callbacks: Sequence[Any] = (),
    stop_at: int | None = None,
    distillation: Distillation | None = None,
) -> dict[str, float]:
    """Train whatever network the model runs, in place, from the start or from where a run was left.

    Arguments are those of ``finetune``; ``stop_at`` ends the training at a step though the schedule is longer.

    Returns:
        rows, steps, epochs, train_loss (last logged), eval_loss_before, eval_loss_after, seconds.
    """
    label = "fine-tune" if isinstance(model, ConvertedModel) else "fine-tune control"
    began = time.perf_counter()
    arguments, sharded = arguments_of(settings, directory), shards_weights()
    device, results = next(model.parameters()).device, {"rows": float(len(dataset))}
    description = _description(settings, model, dataset, network)
    description |= {"processes": arguments.world_size, "sharded": sharded}
    check_same("data, weights and settings of fine-tuning", [json.dumps(description).encode()], arguments.device)
    checkpoint = _begun(directory, description, resume, arguments)
    if not sharded:
        model.to(arguments.device)
    if distillation is not None:
        distillation.teacher.to(arguments.device)
    try:
        if eval_dataset is not None:
            results["eval_loss_before"] = mean_loss(model, eval_dataset, collator, settings.batch_size)
        # A sharded model stays so: a copy is sharded, and the trained weights come back.
        trained = _twin(model) if sharded else model
        with _prepared(trained, settings.gradient_checkpointing), penalised(trained, settings.spike_price) as penalty:
            trainer = ThresholdTrainer(
                threshold_learning_rate=settings.threshold_learning_rate, penalty=penalty, distillation=distillation,
                model=trained, args=arguments, train_dataset=dataset, data_collator=collator,
                callbacks=[Watch(trained, label, progress, stop_at), *callbacks],
            )  # fmt: skip
            if sharded:
                prepare_sharding(trainer)
            with lost_named():
                state = _run(trainer, checkpoint, stop_at)
                if sharded:
                    take_weights(model, trained)
        losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
        results["train_loss"] = losses[-1] if losses else math.nan
        results["steps"], results["epochs"] = float(state["global_step"]), float(state["epoch"])
        if eval_dataset is not None:
            results["eval_loss_after"] = mean_loss(model, eval_dataset, collator, settings.batch_size)
    finally:
        model.to(device)
    results["seconds"] = time.perf_counter() - began
    return results


def _description(settings: Finetune, model: Any, dataset: Any, network: str) -> dict[str, Any]:
    """Return what the result depends on, in JSON types."""
    fields = {name: value for name, value in asdict(settings).items() if name not in _FREE}
    more: dict[str, Any] = {}
    if isinstance(model, ConvertedModel):
        sites = [[asdict(site), str(model.fas_config.recipe.build(site))] for site in model.sites]
        more = {"levels": model.levels, "sites": digest([json.dumps(sites).encode()])}
    return {
        **fields,
        "data": digest_rows(dataset),
        "model": type(model).__name__,
        # Calibration on another number of threads may differ in the last bit of a threshold.
        "weights": digest(pieces([{n: p for n, p in model.named_parameters() if n not in neuron_parameters(model)}])),
        **more,
        "network": network,
    }


def _run(trainer: ThresholdTrainer, checkpoint: Path | None, stop_at: int | None) -> dict[str, Any]:
    """Train to the end, or load it where it has been reached; return Trainer's state."""
    state = None if checkpoint is None else state_of(checkpoint)
    if state is not None and state["global_step"] >= (stop_at or state["max_steps"]):
        # Trainer would run a step too many where the last epoch is not a whole one.
        trainer._load_from_checkpoint(str(checkpoint))
        return state
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return asdict(trainer.state)


def _begun(directory: Path, description: Mapping[str, Any], resume: bool, arguments: TrainingArguments) -> Path | None:
    """Return the checkpoint to resume from, which the first process chooses."""
    found = begin(directory, description, resume=resume) if place()[0] == 0 else None
    step = first_says(-1 if found is None else step_of(found), arguments.device)
    return None if step < 0 else directory / f"checkpoint-{step}"


def _twin(model: Any) -> Any:
    """Return a copy of a model; what populations remember of their last input cannot be copied."""
    if isinstance(model, ConvertedModel):
        model.reset()
    return copy.deepcopy(model)


@contextmanager
def _prepared(model: Any, checkpointing: bool) -> Iterator[None]:
    """Undo what Trainer does to a model beside training it: mode, cache, checkpointing, mixed precision."""
    training, cache = model.training, getattr(model.config, "use_cache", None)
    wrapped = {name: vars(model).get(name) for name in ("forward", "_original_forward")}
    try:
        with recomputing(model) if checkpointing else nullcontext():
            yield
    finally:
        # Mixed precision hangs an autocast around the instance's forward. accelerate's own unwrapping would
        # leave the forward of the base class there, and time steps would be gone without a word.
        for name, value in wrapped.items():
            vars(model).pop(name, None)
            if value is not None:
                setattr(model, name, value)
        if cache is None:
            vars(model.config).pop("use_cache", None)
        else:
            model.config.use_cache = cache
        if isinstance(model, ConvertedModel):
            model.reset()
        model.zero_grad(set_to_none=True)
        model.train(training)


@contextmanager
def recomputing(model: Any) -> Iterator[None]:
    """Recompute the activations of each block in the backward pass while the block lasts.

    Blocks are replayed one by one, so neurons that layers of several blocks read (keys and values of an
    encoder's output) encode again for each reader.
    """
    sites, neurons = model.sites if isinstance(model, ConvertedModel) else (), populations(model)
    wide = [neurons[site.path] for site in sites if len({block_of(path) for path in site.layers}) > 1]
    shared = [population.once for population in wide]
    # transformers 5.23 renames the two methods. Reentrant checkpoints lose gradients that enter by closures.
    word = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{word}_checkpointing_enable")({"use_reentrant": False})
    for population in wide:
        population.once = Once()
    try:
        yield
    finally:
        getattr(model, f"{word}_checkpointing_disable")()
        for population, before in zip(wide, shared, strict=True):
            population.once = before


def arguments_of(settings: Finetune, directory: Path) -> TrainingArguments:
    """Return the settings in Trainer's words."""
    if settings.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise MissingExtraError("tensorboard=True needs TensorBoard: pip install 'fas[train]'")
    return TrainingArguments(
        output_dir=str(directory), seed=settings.seed, data_seed=settings.seed,
        num_train_epochs=settings.epochs, max_steps=settings.max_steps or -1,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        learning_rate=settings.learning_rate, lr_scheduler_type=settings.scheduler,
        warmup_steps=settings.warmup, weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm, bf16=settings.precision == "bf16",
        fp16=settings.precision == "fp16",
        ddp_timeout=int(PATIENCE.total_seconds()),
        use_cpu=not torch.accelerator.is_available(), dataloader_pin_memory=torch.accelerator.is_available(),
        save_strategy="steps", save_steps=settings.save_steps, save_total_limit=settings.save_total_limit,
        logging_steps=settings.logging_steps, logging_nan_inf_filter=False, disable_tqdm=True,
        report_to=["tensorboard"] if settings.tensorboard else [],
    )  # fmt: skip
