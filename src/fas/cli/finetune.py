"""``fas finetune``: stage 1: train the quantised network, and its control."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from fas.cli.program.options import Device, Json, Model, Overwrite, Seed, Window
from fas.cli.program.output import Output
from fas.cli.program.session import is_first
from fas.data.for_model import Sample, default_data, is_classifier, training_rows


def finetune(
    context: typer.Context,
    model: Model,
    out: Annotated[Path, typer.Argument(help="Directory to write; the control goes to OUT-control.")],
    data: Annotated[str | None, typer.Option(help="Text source, or a GLUE-style table for a classifier.")] = None,
    epochs: Annotated[float, typer.Option(help="Passes over the data.", min=0)] = 1.0,
    max_steps: Annotated[int | None, typer.Option(help="Optimiser steps instead of epochs.", min=1)] = None,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate of weights.", min=0)] = 5e-5,
    threshold_learning_rate: Annotated[float, typer.Option(help="Peak learning rate of thresholds.", min=0)] = 1e-3,
    spike_price: Annotated[
        float, typer.Option(help="Nats per spike per neuron and window, added to the loss.", min=0)
    ] = 0.0,
    distillation: Annotated[
        float,
        typer.Option(help="Share of the loss that is KL to the dense model; the rest is the labels'.", min=0, max=1),
    ] = 0.0,
    batch_size: Annotated[int, typer.Option(help="Rows per forward pass.", min=1)] = 8,
    gradient_accumulation: Annotated[int, typer.Option(help="Forward passes per step.", min=1)] = 1,
    gradient_checkpointing: Annotated[bool, typer.Option(help="Use less memory and more time.")] = False,
    precision: Annotated[Literal["fp32", "bf16", "fp16"], typer.Option(help="Of the forward pass.")] = "fp32",
    tensorboard: Annotated[bool, typer.Option(help="Write TensorBoard events.")] = False,
    control: Annotated[bool, typer.Option(help="Train the dense model on the same data too.")] = True,
    window: Window = None,
    device: Device = "cpu",
    seed: Seed = 0,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Fine-tune a converted, calibrated model (stage 1). An interrupted run resumes when run again.

    The spiking network computes what was trained. For another T, or the FAS losses, calibrate afterwards: the trained
    thresholds stay, and the spiking network is fitted to the quantised one.

    Example: `fas finetune gpt2-snn gpt2-snn-tuned --data wikitext --max-steps 1000`
    """
    with Output.opened(context, as_json) as output:
        from fas.loading import load
        from fas.saving import check_place, check_room, save
        from fas.stages.finetune import Finetune
        from fas.storage.directory import whole_directory
        from fas.training.finetuning import finetune, language_modelling

        settings = Finetune(
            epochs=epochs, max_steps=max_steps, learning_rate=learning_rate,
            threshold_learning_rate=threshold_learning_rate, spike_price=spike_price,
            distillation=distillation, batch_size=batch_size, gradient_accumulation=gradient_accumulation,
            gradient_checkpointing=gradient_checkpointing, precision=precision, tensorboard=tensorboard, seed=seed,
        )  # fmt: skip
        check_place(out, overwrite=overwrite)
        loaded = load(model, device)
        loaded.need_converted()
        # Checkpoints lie beside the result until it is complete, so that the command can be run again.
        running = out.with_name(f"{out.name}-checkpoints")
        # The result, and a first checkpoint: weights and two moments of the optimiser.
        check_room(out, loaded.model, copies=1 if running.exists() else 4)
        source = default_data(loaded, data)
        rows = training_rows(loaded, source, Sample(None, window, seed=seed))
        dataset = rows if is_classifier(loaded) else language_modelling(rows)
        with output.progress("fine-tuning") as progress:
            record, dense = finetune(
                loaded.model, dataset, settings, output_dir=running, tokenizer=loaded.tokenizer,
                control=control, progress=progress,
            )  # fmt: skip
        save(loaded, out)
        if dense is not None and is_first():
            with whole_directory(out.with_name(f"{out.name}-control")) as beside:
                dense.save_pretrained(beside)
                loaded.need_tokenizer().save_pretrained(beside)
        for name, value in record.results.items():
            network = "control" if name.startswith("control_") else "quantised"
            about = {**loaded.conditions, "network": network, "data": source}
            output.measure(f"finetune.{name}", value, "s" if "seconds" in name else "1", **about)
        output.table("stage 1", ["figure", "value"], [[k, float(v)] for k, v in record.results.items()])
        output.remark(f"written to {out}; see what it is worth: fas evaluate {out} --data {source}")
