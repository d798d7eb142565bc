"""``fas calibrate``: set the thresholds of a converted model again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from fas.cli.program.calibrating import report_records
from fas.cli.program.options import BatchSize, Device, Json, Model, Overwrite, Seed, Tokens, Window
from fas.cli.program.output import Output
from fas.cli.program.session import is_alone
from fas.data.for_model import Sample, calibration_batches, default_data


def calibrate(
    context: typer.Context,
    model: Model,
    out: Annotated[Path | None, typer.Argument(help="Directory to write; the model's own if not given.")] = None,
    data: Annotated[str | None, typer.Option(help="Text file, jsonl/tsv, directory or hub data set.")] = None,
    timesteps: Annotated[int | None, typer.Option(help="New T; the model's if not given.")] = None,
    spike_price: Annotated[
        float | None,
        typer.Option(help="New price: nats per answer that one spike per neuron may cost.", min=0),
    ] = None,
    losses: Annotated[
        bool, typer.Option("--losses", help="Then train thresholds by the FAS loss (alignment + KL).")
    ] = False,
    tokens: Tokens = 4096,
    window: Window = None,
    batch_size: BatchSize = 16,
    device: Device = "cpu",
    seed: Seed = 0,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Calibrate a converted model: coarse per layer, fine per channel, then the losses if asked for.

    Example: `fas calibrate gpt2-snn gpt2-snn-t4 --data wikitext --timesteps 4 --losses`
    """
    with Output.opened(context, as_json) as output:
        from fas.calibration.teacher import Teacher
        from fas.conversion import calibrate_on, losses_of, stages_of
        from fas.loading import load
        from fas.memory import with_fewer_rows
        from fas.saving import check_place, check_room, finish, is_in_place, save, save_in_place, unfinished

        if losses and not is_alone():
            raise ValueError("--losses runs in one process only: start one")
        place, command = out or Path(model), context.obj.command
        in_place = is_alone() and is_in_place(place, model)
        if out is not None:
            check_place(out, overwrite=overwrite)
        done = in_place and finish(place, command)
        loaded = load(model, device)
        loaded.need_converted()
        check_room(place, loaded.model)
        if done:
            stages = len(stages_of(loaded.model)) + losses
            about = {**loaded.conditions, "data": default_data(loaded, data)}
            report_records(output, loaded.model.records[-stages:], about)
            output.remark(f"written to {place} by the run that was interrupted: T = {loaded.model.timesteps}")
            return
        if timesteps is not None:
            loaded.model.simulation.calibrated = timesteps  # what follows sets the thresholds for it
            loaded.set(timesteps)
        if spike_price is not None:
            config = loaded.model.fas_config
            if not hasattr(config.recipe, "spike_price"):
                raise ValueError(f"method {config.method!r} has no spike price: leave --spike-price out")
            if loaded.model.is_trained:
                raise ValueError("--spike-price moves thresholds, and these have been trained: give it to fas finetune")
            config.recipe = config.recipe.with_options(spike_price=spike_price)
        sample = Sample(tokens, window, batch_size, seed)
        source, teacher = default_data(loaded, data), Teacher(loaded.model, "auto")
        with output.progress("calibrating") as progress:
            records = calibrate_on(loaded, source, sample, keep=unfinished(place), progress=progress)
        if losses:
            stage = losses_of(loaded.model.fas_config.recipe, seed)
            with output.progress("aligning") as progress:

                def follow(rows: int) -> Any:
                    batches = calibration_batches(loaded, source, replace(sample, batch_size=rows))
                    return stage.follow(teacher, loaded.model, batches, progress)

                records.append(with_fewer_rows(batch_size, follow))
            loaded.model.records.append(records[-1])
        report_records(output, records, {**loaded.conditions, "data": source})
        if in_place:
            save_in_place(loaded, place, command)
        else:
            save(loaded, place)
        output.remark(f"written to {place}: T = {loaded.model.timesteps}")
