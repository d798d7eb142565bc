"""``fas evaluate``: perplexity of a language model, scores of a classifier, spikes beside them."""

from __future__ import annotations

from typing import Annotated

import typer

from fas.cli._calibration import conditions
from fas.cli._data import default_data
from fas.cli._measured import Scores, measure
from fas.cli._options import BatchSize, Device, Json, Model, whole_numbers
from fas.cli._output import Output
from fas.types import Network, Schedule


def evaluate(
    context: typer.Context,
    model: Model,
    data: Annotated[str | None, typer.Option(help="Text source, or a GLUE-style tsv/json/csv with labels.")] = None,
    timesteps: Annotated[str | None, typer.Option(help="One T or several, as 2,4,8; the model's if not given.")] = None,
    network: Annotated[
        Network | None, typer.Option(help="Which of the three networks of a converted model; snn if not given.")
    ] = None,
    schedule: Annotated[Schedule | None, typer.Option(help="The model's if not given.")] = None,
    window: Annotated[int | None, typer.Option(help="Tokens per window; the model's context.", min=2)] = None,
    stride: Annotated[int | None, typer.Option(help="New tokens per window; half a window.", min=1)] = None,
    split: Annotated[str, typer.Option(help="Part of a data set that has parts.")] = "test",
    limit_tokens: Annotated[int | None, typer.Option(help="Use the first tokens only.", min=2)] = None,
    batch_size: BatchSize = 8,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Measure perplexity (strided window), or accuracy, F1, Matthews and correlations of a classifier.

    Thresholds belong to the T they were calibrated at: another T runs, but less well than after
    `fas calibrate --timesteps`.

    Example: `fas evaluate gpt2-snn --data wikitext --timesteps 4,8`
    """
    steps = whole_numbers(timesteps, "--timesteps") if timesteps else [None]
    with Output.opened(context, as_json) as output:
        from fas.cli._models import load

        loaded = load(model, device)
        if network in ("quantised", "snn") or timesteps is not None or schedule is not None:
            loaded.need_converted()
        scores = Scores(
            loaded, default_data(loaded, data), split=split, limit=limit_tokens, window=window, stride=stride,
            batch_size=batch_size,
        )  # fmt: skip
        rows = []
        for timestep in steps:
            if loaded.converted:
                loaded.model.network = network or "snn"
                if timestep is not None:
                    loaded.set_timesteps(timestep)
                if schedule is not None:
                    loaded.model.schedule = schedule
            found, spikes = measure(output, loaded, scores)
            shown = found if spikes is None else {**found, "spikes_per_neuron": spikes}
            about = conditions(loaded)
            rows += [
                [about["network"], about.get("timesteps"), about.get("levels"), name, float(value)]
                for name, value in shown.items()
            ]
        output.table(f"{model} on {scores.source}", ["network", "T", "levels", "quantity", "value"], rows)
