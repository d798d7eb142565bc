"""Transformers' Trainer for quantised networks: threshold group, finite losses, runs that resume."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import math
import shutil
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

from fas.errors import CheckpointError, FASError, MissingExtraError
from fas.layers.population import Population
from fas.runtime.transformers_ import ConvertedModel
from fas.stages.spike_penalty import Penalty, penalised
from fas.surgery.replace import populations
from fas.surgery.sites import block_of, is_spiking
from fas.types import Progress

if TYPE_CHECKING:
    from fas.stages.finetune import Finetune

logger = logging.getLogger(__name__)

# What a run directory says about the run whose checkpoints it holds.
RUN_FILE = "finetune.json"
# Rows that stand for a data set in its fingerprint.
_SAMPLE = 10_000
# Largest v_0/θ: the initial potential stays below the threshold.
_BELOW_ONE = 1 - 2**-20

Collator = Callable[[list[Any]], dict[str, Any]]


class ThresholdTrainer(Trainer):
    """Trainer with a learning rate of its own for the parameters that only the quantised network has.

    Args:
        threshold_learning_rate: for ``log_threshold``, ``v_init``, ``offset`` and ``correction``, which
            get no weight decay: it would pull θ towards 1 and μ towards 0.
        penalty: what spikes cost, added to the model's loss.
        arguments: as for ``transformers.Trainer``.

    Raises:
        FASError: a loss that is not finite; Trainer itself would log an average in its place and go on.
        CheckpointError: a checkpoint that does not fit the model; Trainer itself would only warn.
    """

    optimizer: Any

    def __init__(self, *, threshold_learning_rate: float, penalty: Penalty | None = None, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.penalty = penalty
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

    def compute_loss(self, *arguments: Any, **named: Any) -> Any:
        """Return the model's loss and what its spikes cost; training asks for no outputs beside it."""
        loss = super().compute_loss(*arguments, **named)
        return loss if self.penalty is None else loss + self.penalty.cost()

    def training_step(self, *arguments: Any, **named: Any) -> Tensor:
        """Run one forward and backward pass, and refuse to go on from a loss that is not finite."""
        loss: Tensor = super().training_step(*arguments, **named)
        if not bool(loss.isfinite().all()):
            raise FASError(
                f"the loss is {float(loss):g} after {self.state.global_step} steps (learning_rate "
                f"{self.args.learning_rate:g}, threshold_learning_rate {self.threshold_learning_rate:g}): "
                "lower them or lengthen the warm-up"
            )
        return loss

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
    """Keeps v_0/θ in [0, 1), logs, reports progress, and stops at a step.

    Args:
        model: the model that is trained.
        label: what is trained, for messages.
        progress: told after every step.
        stop_at: step after which training ends, though the schedule is longer.
    """

    def __init__(self, model: nn.Module, label: str, progress: Progress | None, stop_at: int | None) -> None:
        self.potentials = [m.v_init for m in model.modules() if isinstance(m, Population)]
        self.label, self.progress, self.stop_at = label, progress, stop_at

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Bring initial potentials back below the threshold, where the closed forms over time hold."""
        with torch.no_grad():
            for potential in self.potentials:
                potential.clamp_(0, _BELOW_ONE)

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
    description: Mapping[str, Any],
    evaluate: Callable[[], float] | None,
    resume: bool,
    progress: Progress | None,
    callbacks: Sequence[Any] = (),
    stop_at: int | None = None,
) -> dict[str, float]:
    """Train whatever network the model runs, in place, from the start or from where a run was left.

    Args:
        settings: of the stage.
        model: a converted model set to its quantised network, or a dense model.
        dataset: rows with ``labels``.
        directory: of the run.
        collator: makes a batch of rows.
        description: everything that the result depends on, in JSON types.
        evaluate: returns the loss on other rows; called before and after.
        resume: go on from checkpoints; else they are removed.
        progress: told after each step.
        callbacks: TrainerCallbacks.
        stop_at: step after which training ends, though the schedule is longer.

    Returns:
        rows, steps, epochs, train_loss (last logged), eval_loss_before, eval_loss_after, seconds.
    """
    label = "fine-tune" if isinstance(model, ConvertedModel) else "fine-tune control"
    began = time.perf_counter()
    arguments = arguments_of(settings, directory)
    checkpoint = begin(directory, description, resume=resume, write=arguments.should_save)
    device, results = next(model.parameters()).device, {"rows": float(len(dataset))}
    model.to(arguments.device)
    try:
        if evaluate is not None:
            results["eval_loss_before"] = evaluate()
        with _prepared(model, settings.gradient_checkpointing), penalised(model, settings.spike_price) as penalty:
            trainer = ThresholdTrainer(
                threshold_learning_rate=settings.threshold_learning_rate,
                penalty=penalty,
                model=model,
                args=arguments,
                train_dataset=dataset,
                data_collator=collator,
                callbacks=[Watch(model, label, progress, stop_at), *callbacks],
            )
            state = _run(trainer, checkpoint, stop_at)
        losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
        results["train_loss"] = losses[-1] if losses else math.nan
        results["steps"], results["epochs"] = float(state["global_step"]), float(state["epoch"])
        if evaluate is not None:
            results["eval_loss_after"] = evaluate()
    finally:
        model.to(device)
    results["seconds"] = time.perf_counter() - began
    if arguments.should_save:
        save_run(directory, {**description, "results": results})
    return results


def _run(trainer: ThresholdTrainer, checkpoint: Path | None, stop_at: int | None) -> dict[str, Any]:
    """Train to the end, or load it where it has been reached; return Trainer's state."""
    state = None if checkpoint is None else state_of(checkpoint)
    if state is not None and state["global_step"] >= (stop_at or state["max_steps"]):
        # Trainer would run a step too many where the last epoch is not a whole one.
        trainer._load_from_checkpoint(str(checkpoint))
        return state
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return asdict(trainer.state)


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
    encoder's output) encode for each reader anew.
    """
    shared = []
    if isinstance(model, ConvertedModel):
        neurons = populations(model)
        wide = [site for site in model.sites if len({block_of(path) for path in site.layers}) > 1]
        shared = [(neurons[site.path], neurons[site.path].readers) for site in wide]
    # transformers 5.23 renames the two methods. Reentrant checkpoints lose gradients that enter by closures.
    word = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{word}_checkpointing_enable")({"use_reentrant": False})
    for population, _ in shared:
        population.readers = 1
    try:
        yield
    finally:
        getattr(model, f"{word}_checkpointing_disable")()
        for population, readers in shared:
            population.readers = readers


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
        use_cpu=not torch.accelerator.is_available(), dataloader_pin_memory=torch.accelerator.is_available(),
        save_strategy="steps", save_steps=settings.save_steps, save_total_limit=settings.save_total_limit,
        logging_steps=settings.logging_steps, logging_nan_inf_filter=False, disable_tqdm=True,
        report_to=["tensorboard"] if settings.tensorboard else [],
    )  # fmt: skip


def neuron_parameters(model: nn.Module) -> set[str]:
    """Return the names of the parameters that the dense network does not have."""
    names: set[str] = set()
    for path, module in model.named_modules():
        if isinstance(module, Population):
            names.update(f"{path}.{name}" for name, _ in module.named_parameters(recurse=False))
        elif is_spiking(module):
            names.add(f"{path}.correction")
    return names


def fingerprint_data(dataset: Any) -> str:
    """Return a digest of a data set: its length and up to 10,000 rows, evenly spread.

    A data set whose rows change by chance names itself by an attribute ``fingerprint``.
    """
    named = getattr(dataset, "fingerprint", None) or getattr(dataset, "_fingerprint", None)
    if isinstance(named, str):
        return named
    digest = hashlib.sha256(str(len(dataset)).encode())
    for index in range(0, len(dataset), max(1, -(-len(dataset) // _SAMPLE))):
        for key, value in sorted(dataset[index].items()):
            # Tensors and arrays by their bytes: long ones print shortened.
            content = torch.as_tensor(value).tolist() if hasattr(value, "__array__") else value
            digest.update(f"{key}{content!r}".encode())
    return digest.hexdigest()[:16]


def fingerprint_weights(model: nn.Module) -> str:
    """Return a digest of the weights that dense and converted model share: both ends of every tensor.

    Thresholds are left out: calibration on another number of threads may differ in their last bit.
    """
    digest, own = hashlib.sha256(), neuron_parameters(model)
    for name, parameter in sorted(model.named_parameters()):
        if name not in own:
            flat = parameter.detach().reshape(-1)
            ends = torch.cat([flat[:8], flat[-8:]]).float().cpu()
            digest.update(f"{name}{tuple(parameter.shape)}".encode() + ends.numpy().tobytes())
    return digest.hexdigest()[:16]


def begin(directory: Path, description: Mapping[str, Any], *, resume: bool, write: bool) -> Path | None:
    """Return the checkpoint from which a run goes on, None for a run that starts.

    Args:
        directory: of the run.
        description: what the result depends on.
        resume: go on where checkpoints are; else they are removed.
        write: whether this process writes (one of several does).

    Raises:
        CheckpointError: checkpoints of another run; the field that differs is named.
    """
    file = directory / RUN_FILE
    known: dict[str, Any] | None = None
    if file.is_file():
        try:
            known = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            raise CheckpointError(f"{file} is damaged; remove {directory} or name another output_dir") from None
    present = sorted(directory.glob("checkpoint-*"), key=_step)
    if present and known is None:
        raise CheckpointError(
            f"{directory} holds {present[-1].name} but no {RUN_FILE}: another program wrote it; name another output_dir"
        )
    if not resume and write:
        for path in present:
            shutil.rmtree(path)
    complete = [path for path in present if resume and state_of(path) is not None]
    if complete and known is not None:
        for field, value in description.items():
            if known.get(field) != value:
                raise CheckpointError(
                    f"{directory} holds checkpoints of another run: {field} was {known.get(field)!r} and is "
                    f"now {value!r}; start from the same, name another output_dir, or pass resume=False, "
                    "which removes them"
                )
    if write:
        save_run(directory, description)
    return complete[-1] if complete else None


def save_run(directory: Path, description: Mapping[str, Any]) -> None:
    """Write the run file, whole or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    beside = directory / f".{RUN_FILE}"
    beside.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    beside.replace(directory / RUN_FILE)


def state_of(checkpoint: Path) -> dict[str, Any] | None:
    """Return Trainer's state in a checkpoint; None for one not written to the end (the state comes last)."""
    try:
        state: dict[str, Any] = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        logger.warning("%s was not written to the end; it is passed over", checkpoint)
        return None
    return state


def _step(checkpoint: Path) -> int:
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1
