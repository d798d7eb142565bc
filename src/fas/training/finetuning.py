"""Fine-tuning of the quantised network with transformers' Trainer, and its control on the same data."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import DataCollatorWithPadding, default_data_collator

from fas import registry
from fas.distributed import place
from fas.errors import DataError, NotCalibratedError
from fas.runtime.transformers_ import ConvertedModel, uninstall
from fas.storage.digest import digest, pieces
from fas.surgery.replace import populations
from fas.training.descent import labels_of
from fas.training.distillation import Distillation
from fas.training.trainer import Collator, train
from fas.types import Progress, Record

if TYPE_CHECKING:
    from fas.stages.finetune import Finetune


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
        dataset: rows as the model's forward takes them, with ``labels``: ``language_modelling(rows)``,
            ``fas.data.table.tokenise_table(…)``, or any data set with a length.
        settings: the stage; its defaults if None.
        output_dir: directory of the run; the control is in ``control`` below, for ``from_pretrained``.
        eval_dataset: rows on which the mean losses of both are taken, before and after.
        collator: makes a batch of rows.
        tokenizer: pads rows of unequal length.
        control: False trains no control.
        resume: resume from checkpoints in ``output_dir``; False removes them.
        progress: told after each step of both.
        callbacks: transformers' TrainerCallbacks, for the quantised network; the control stops where it does.

    Returns:
        The record, also in ``model.records``, the control's figures under ``control_…``, and the control or None.

    Raises:
        ValueError: a model that is not converted, half-precision weights, fp16 without an accelerator.
        NotCalibratedError: thresholds that were never set.
        DataError: no rows, rows without labels, rows longer than the context; distillation of a regression.
        CheckpointError: ``output_dir`` holds another run; the field that differs is named.
        MissingExtraError: TensorBoard asked for and not installed.
        FASError: a loss that is not finite.

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
    settings = registry.load("stages", "finetune")() if settings is None else settings
    _require_thresholds(model)
    dense = _dense_copy(model) if control else None
    record = tuned(
        settings, model, dataset, output_dir=output_dir, eval_dataset=eval_dataset, collator=collator,
        tokenizer=tokenizer, resume=resume, progress=progress, callbacks=callbacks,
    )  # fmt: skip
    if dense is not None:
        directory = Path(output_dir) / "control"
        figures = train(
            replace(settings, distillation=0.0), dense, dataset, directory, _collator(collator, tokenizer),
            network="dense", eval_dataset=eval_dataset, resume=resume, progress=progress,
            stop_at=int(record.results["steps"]),
        )  # fmt: skip
        if place()[0] == 0:
            dense.save_pretrained(directory)
        results = {**record.results, **{f"control_{name}": value for name, value in figures.items()}}
        record = Record(record.stage, record.settings, results, record.sites)
    model.records.append(record)
    return record, dense


def tuned(
    settings: Finetune,
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

    Arguments and errors: see ``finetune``.

    Returns:
        Steps, seconds of this call, last logged training loss, losses on ``eval_dataset``, shifts of thresholds.
    """
    _require_thresholds(model)
    _check_precision(settings, model)
    _check_data(model, dataset)
    before = {path: p.log_threshold.detach().clone() for path, p in populations(model).items()}
    with settings.network(model) as network:
        results = train(
            settings, model, dataset, Path(output_dir), _collator(collator, tokenizer), network=network,
            eval_dataset=eval_dataset, resume=resume, progress=progress, callbacks=callbacks,
            distillation=Distillation(_dense_copy(model), settings.distillation) if settings.distillation else None,
        )  # fmt: skip
    sites = {
        path: {
            "threshold_mean": float(p.threshold.detach().mean()),
            "threshold_log_change": float((p.log_threshold.detach() - before[path]).abs().mean()),
        }
        for path, p in populations(model).items()
    }
    return settings.record(results, sites)


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
        self.fingerprint = digest(pieces([{"rows": self.rows}]))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


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
                f"site {path} has no thresholds yet, which fine-tuning starts from: run "
                "fas.calibrate(model, data) or the stage SetThresholds before"
            )


def _check_precision(settings: Finetune, model: nn.Module) -> None:
    half = [name for name, parameter in model.named_parameters() if parameter.dtype == torch.float16]
    if half:
        raise ValueError(
            f"{half[0]} is float16, which is too coarse to train: load the model with "
            "dtype=torch.float32 and choose precision='fp16' or 'bf16' for the arithmetic"
        )
    if settings.precision == "fp16" and not torch.accelerator.is_available():
        raise ValueError("precision is 'fp16', which needs an accelerator; choose 'bf16' or 'fp32' on a CPU")


def _check_data(model: Any, dataset: Any) -> None:
    if len(dataset) == 0:
        raise DataError("the data set has no rows; give at least one")
    row = dataset[0]
    labels_of(row)
    context = getattr(model.config, "max_position_embeddings", None)
    if context is not None and len(row.get("input_ids", ())) > context:
        raise DataError(
            f"rows have {len(row['input_ids'])} tokens but {type(model).__name__} has {context} positions: "
            "cut shorter ones"
        )
