"""``fas inspect``: what spikes in a model, what stays float, and how it fires."""

from __future__ import annotations

from typing import Annotated, Any

import typer

import fas
from fas.cli.program import options
from fas.cli.program.output import Output
from fas.data.for_model import Sample, calibration_batches
from fas.plain_networks import inputs_of, load_either, photographs


def inspect(
    context: typer.Context,
    model: options.Model,
    data: Annotated[
        str | None, typer.Option(help="Text source or folder of images to measure firing rates on.")
    ] = None,
    tokens: options.MeasuredTokens = 2048,
    builder: options.Builder = None,
    spiking: options.SpikingNetwork = None,
    images: options.MeasuredImages = 32,
    window: options.Window = None,
    batch_size: options.BatchSize = 8,
    device: options.Device = "cpu",
    seed: options.Seed = 0,
    as_json: options.Json = False,
) -> None:
    """Show sites, thresholds, firing rates and what stays float in a converted model, or the sites of a dense one.

    Example: `fas inspect gpt2-snn --data wikitext`
    """
    with Output.opened(context, as_json) as output:
        from fas.surgery.probe import evaluating

        loaded = load_either(model, device, builder, spiking)
        batches, probe = [], None
        if builder is not None:
            if data is None:
                raise ValueError("a plain network does not say what it reads: name a folder of images with --data")
            batches = inputs_of(photographs(loaded, data, "test", limit=images, rows=batch_size, seed=seed))
            probe = {name: value[:1] for name, value in batches[0].items()}
        elif data is not None and loaded.converted:
            batches = calibration_batches(loaded, data, Sample(tokens, window, batch_size, seed))
        if not loaded.converted:
            _dense(output, loaded, probe)
            return
        fired = None
        if batches:
            with fas.record(loaded.model) as fired, evaluating(loaded.model):
                for batch in batches:
                    loaded.model(**batch)
        _converted(output, loaded, fired)
        _operations(output, loaded, probe)


def _dense(output: Output, loaded: Any, probe: Any) -> None:
    from typing import get_args

    from fas.errors import SiteError
    from fas.surgery.sites import find_sites
    from fas.types import Coverage

    for coverage in get_args(Coverage):
        try:
            sites = find_sites(loaded.model, coverage, probe=probe)
        except SiteError as error:
            output.text(f"coverage {coverage}: {error}")
            continue
        rows = [[s.path, s.role, s.channels, "±" if s.signed else "+", ", ".join(s.also)] for s in sites]
        output.table(
            f"{loaded.name}: {len(sites)} sites in coverage {coverage}",
            ["site", "role", "channels", "sign", "also drives"],
            rows,
        )
        output.measure("sites", len(sites), "1", model=loaded.name, network="ann", coverage=coverage)


def _converted(output: Output, loaded: Any, fired: Any) -> None:
    from fas.recording import SiteSpikes
    from fas.surgery.replace import populations

    neurons, about = populations(loaded.model), loaded.conditions
    errors = {path: f for record in loaded.model.records for path, f in record.sites.items()}
    columns = ["site", "role", "channels", "layers", "sign", "θ min", "θ mean", "θ max", "relative error"]
    rows = []
    for site in loaded.model.sites:
        threshold = neurons[site.path].threshold.detach()
        low, mean, high = (float(value) for value in (threshold.min(), threshold.mean(), threshold.max()))
        sign, error = "±" if site.signed else "+", errors.get(site.path, {}).get("relative_error")
        row = [site.path, site.role, site.channels, len(site.layers), sign, low, mean, high, error]
        output.measure("threshold_mean", mean, "activation", site=site.path, **about)
        if fired is not None:
            # An expert that no token was given to has not been there.
            seen = fired.sites.get(site.path, SiteSpikes())
            silent = 1.0 if seen.silent is None else float(seen.silent.float().mean())
            row += [seen.spikes_per_neuron, seen.firing_rate, silent]
            output.measure("spikes_per_neuron", seen.spikes_per_neuron, "spikes/neuron", site=site.path, **about)
            output.measure("firing_rate", seen.firing_rate, "spikes/step", site=site.path, **about)
            output.measure("silent_share", silent, "1", site=site.path, **about)
        rows.append(row)
    if fired is not None:
        columns += ["spikes per neuron", "firing rate", "silent"]
    output.table(f"{loaded.name}: {len(rows)} sites, T = {loaded.model.timesteps}", columns, rows)


def _operations(output: Output, loaded: Any, probe: Any) -> None:
    """Say of every operation what arrives there and what is left to compute."""
    from fas.energy.inventory import operations
    from fas.surgery.left_dense import in_words, left_dense
    from fas.surgery.replace import populations

    found, about = operations(loaded.model, probe), loaded.conditions
    shares = left_dense(loaded.model, probe)
    for path, share in shares.items():
        output.measure("left_dense", share, "1", path=path, **about)
    output.text(in_words(shares))
    per = "token" if probe is None else "image"
    article = "a" if probe is None else "an"
    output.table(
        f"{loaded.name}: operations, * for the number of a block",
        ["where", "operation", "how many", "arrives", "left", f"{article} {per}"],
        [[o.path, o.what, o.count, o.arrives, o.left, o.amount] for o in found],
    )
    for o in found:
        stated = {**about, "path": o.path, "operation": o.what, "arrives": o.arrives, "left": o.left}
        output.measure("operations", o.amount, f"1/{per}", **stated, floats=o.floats)
    floats = [f"{o.what} {'' if o.path.startswith('in ') else 'at '}{o.path} ({o.left})" for o in found if o.floats]
    unset = not all(neurons.is_set for neurons in populations(loaded.model).values())
    output.text(f"Stays float: {'; '.join(floats)}." if floats else "Nothing stays float.")
    output.text("Watched: the dense network, for want of thresholds." if unset else "Watched: the spiking network.")
    if any("digits" in o.left for o in found):
        output.text("Gated digits come from tables of 128 to 1,024 straight pieces, 16 binary digits within each.")
