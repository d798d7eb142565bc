"""``fas evaluate``: perplexity of a language model, scores of a classifier, spikes beside them."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from fas.cli._calibration import conditions
from fas.cli._data import default_data, is_classifier, row_length, tokens
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
        import fas
        from fas.cli._models import load

        loaded = load(model, device)
        if network in ("quantised", "snn") or timesteps is not None or schedule is not None:
            loaded.need_converted()
        source = default_data(loaded, data)
        measured = _Classification(loaded, source, batch_size) if is_classifier(loaded) else None
        stream: Any = None if measured else tokens(loaded, source, split)
        rows = []
        for timestep in steps:
            if loaded.converted:
                loaded.model.network = network or "snn"
                if timestep is not None:
                    loaded.set_timesteps(timestep)
                if schedule is not None:
                    loaded.model.schedule = schedule
            spiking = loaded.converted and loaded.model.network == "snn"
            with fas.record(loaded.model) if spiking else nullcontext() as spikes:
                with output.progress("evaluating") as advance:
                    if measured is not None:
                        scores = measured(advance)
                    else:
                        from fas.evaluate.perplexity import perplexity

                        found = perplexity(
                            loaded.model, stream[:limit_tokens], window=window, stride=stride,
                            batch_size=batch_size, progress=advance,
                        )  # fmt: skip
                        scores = {"perplexity": found.value}
            about = {**conditions(loaded), "data": source}
            if stream is not None:
                about["tokens"] = len(stream[:limit_tokens])
            if spikes is not None:
                scores["spikes_per_neuron"] = spikes.spikes_per_neuron
            for name, value in scores.items():
                output.measure(name, value, "spikes/window" if "spikes" in name else "1", **about)
                rows.append([about["network"], about.get("timesteps"), about.get("levels"), name, float(value)])
        output.table(f"{model} on {source}", ["network", "T", "levels", "quantity", "value"], rows)


class _Classification:
    """The scores of a classifier on one table."""

    def __init__(self, loaded: Any, source: str, batch_size: int) -> None:
        from fas.data.table import load_table

        self.loaded, self.batch_size = loaded, batch_size
        # Whole scores look like classes; the head knows better.
        self.table = load_table(Path(source), task="regression" if loaded.model.config.num_labels == 1 else None)

    def __call__(self, advance: Any) -> dict[str, float]:
        from fas.evaluate.classify import classify

        loaded = self.loaded
        return classify(
            loaded.model,
            self.table,
            loaded.need_tokenizer(),
            batch_size=self.batch_size,
            max_length=row_length(loaded),
            progress=advance,
        )
