"""``fas energy``: what a spiking network does, and what that would cost beside dense networks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

import fas
from fas.cli.program import options
from fas.cli.program.output import Output
from fas.data.for_model import Sample, calibration_batches, check_apart, contents, default_data, held_out_batches
from fas.plain_networks import inputs_of, load_either, photographs

if TYPE_CHECKING:
    from fas.energy.estimate import Accounting, Estimate


def energy(
    context: typer.Context,
    model: options.Model,
    data: Annotated[
        str | None, typer.Option(help="Text source, table, or folder of images to run on: its test part.")
    ] = None,
    test_tokens: options.MeasuredTokens = 2048,
    new_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens to generate after each window; 16 by default for a language model.", min=0),
    ] = None,
    prices: Annotated[
        str, typer.Option(help="Cost models, several with commas: 45nm, 45nm-dram, 22nm, loihi, or TOML files.")
    ] = "45nm",
    reuse: Annotated[
        Literal["none", "time", "pass"],
        typer.Option(help="How long a fetched weight is kept; time: for all steps of a position."),
    ] = "time",
    order: Annotated[
        Literal["row", "window", "output"],
        typer.Option(
            help="How sums are made; row: an input adds its row of weights to all accumulators, which are read and "
            "written each time; window: once for all spikes of a neuron's window; output: one accumulator at a time, "
            "for which all inputs are read again."
        ),
    ] = "row",
    accumulator: Annotated[
        Literal["8", "16", "32"], typer.Option(help="Bits of the accumulators of integer networks.")
    ] = "32",
    precision: Annotated[Literal["fp32", "fp16"], typer.Option(help="Of the dense network.")] = "fp32",
    by_layer: Annotated[bool, typer.Option("--by-layer", help="Show all counts, and every site.")] = False,
    rivals: Annotated[
        bool,
        typer.Option(
            help="Measure the perplexity of a language model, and the twin of the fewest bits and the network of the "
            "most skipped inputs that reach it."
        ),
    ] = True,
    neurobench: Annotated[
        bool, typer.Option("--neurobench", help="Add NeuroBench's metrics, by its key names.")
    ] = False,
    builder: options.Builder = None,
    spiking: options.SpikingNetwork = None,
    test_images: options.MeasuredImages = 32,
    coverage: Annotated[
        str | None,
        typer.Option(
            help="Of a dense model: what to convert, one or several; mlp,linear,full, of a plain network linear."
        ),
    ] = None,
    neuron: Annotated[str, typer.Option(help="Codes of a dense model: NAME or NAME:FIELD=VALUE.")] = "adaptive_digit",
    timesteps: Annotated[int, typer.Option(help="Of a dense model: T.", min=1)] = 8,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw perplexity against spikes, with the dense networks: an svg, png or pdf file."),
    ] = None,
    tokens: options.Tokens = 4096,
    images: Annotated[int, typer.Option(help="Images to calibrate on.", min=1)] = 256,
    calibration_data: options.Data = None,
    window: options.Window = None,
    batch_size: options.BatchSize = 8,
    device: options.Device = "cpu",
    seed: options.Seed = 0,
    as_json: options.Json = False,
) -> None:
    """Count additions, multiply-adds, events and fetched weights per token or image, and estimate their energy.

    A dense model is converted first, once for each coverage, and not saved. Counts are measured; energies are
    estimates, by three accountings. The spiking network stands beside the dense network, the dense network that
    skips zeros, and the integer network with as many levels.

    Example: `fas energy gpt2-snn --data wikitext --prices 45nm,loihi`
    """
    with Output.opened(context, as_json) as output:
        from fas.energy.bill import Hardware
        from fas.energy.estimate import Estimate, count_both, levels_of
        from fas.energy.prices import load_prices
        from fas.energy.rivals import Rival, measure_rivals
        from fas.evaluation.score import scores_on
        from fas.reporting.result_figures import check_drawing, draw
        from fas.storage.digest import digests

        if plot is not None:
            check_drawing(plot)
        cost_models = [load_prices(name) for name in options.words(prices)]
        if not cost_models:
            raise ValueError("--prices names no cost model: pass 45nm, or another one")
        loaded = load_either(model, device, builder, spiking)
        source = default_data(loaded, data, held_out=True)
        place = calibration_data or source
        plain, calibration, new = builder is not None, list[dict[str, Any]](), 0
        compared = rivals and loaded.generates and not plain and not loaded.model.config.is_encoder_decoder
        if plot is not None and not compared:
            raise ValueError("--plot draws the perplexities of --rivals, of models that write text: leave --plot out")
        if plain:
            batches = inputs_of(photographs(loaded, source, "test", limit=test_images, rows=batch_size, seed=seed))
        else:
            new = (16 if loaded.generates else 0) if new_tokens is None else new_tokens
            measured = Sample(test_tokens, window, batch_size, seed, "--test-tokens")
            batches = held_out_batches(loaded, source, measured, new_tokens=new)
        if not loaded.converted or compared:
            if plain:
                calibration = inputs_of(photographs(loaded, place, "train", limit=images, rows=64, seed=seed))
                parts = digests(calibration), digests(batches)
            else:
                enough = max(min(tokens, _MAGNITUDES), window or 1) if loaded.converted else tokens
                calibration = calibration_batches(loaded, place, Sample(enough, window, batch_size, seed))
                parts = contents(loaded, place, "train"), contents(loaded, source, "test")
            without = ", or leave the rivals out (--no-rivals)" if loaded.converted else ""
            check_apart(*parts, place, source, f"--calibration-data{without}")
        if compared:
            span = measured.window_for(loaded)
            on = scores_on(loaded, source, limit=test_tokens, window=span, stride=span, batch_size=batch_size)
        covered = coverage or ("linear" if plain else "mlp,linear,full")
        per = "image" if plain else "token"
        plans = [(c, n) for c in options.words(covered) for n in options.words(neuron)]
        for name, code in [("", "")] if loaded.converted else plans:
            if name:
                plan = fas.FAS(coverage=name, neuron=code, timesteps=timesteps)  # type: ignore[arg-type]
                output.remark(f"converting, coverage {name}, {code}, T = {timesteps}")
                with output.progress("calibrating") as progress:
                    probe = {name: value[:1] for name, value in calibration[0].items()} if plain else None
                    fas.convert(loaded.model, plan, calibration=calibration, probe=probe, progress=progress)
            about = {**loaded.conditions, "data": source}
            with output.progress("counting") as progress:
                counts, dense = count_both(loaded.model, batches, new_tokens=new, progress=progress)
                scores, others = dict[str, float](), list[Rival]()
                if compared:
                    scores, others = measure_rivals(
                        loaded.model, lambda: on.of(loaded)[0]["perplexity"], batches, calibration, new_tokens=new,
                        progress=progress,
                    )  # fmt: skip
            _counts(output, counts, dense, about, per, by_layer=by_layer)
            for cost in cost_models:
                hardware = Hardware(cost, reuse, order, precision, int(accumulator))  # type: ignore[arg-type]
                found = Estimate(counts, dense, levels_of(loaded.model), hardware, others, scores)
                _estimates(output, found, about, per)
            if neurobench:
                _neurobench(output, loaded, batches[0], about)
            if name:
                fas.revert(loaded.model)
        if plot is not None:
            draw(output.measurements, plot)
            output.remark(f"drawn to {plot}")


# Tokens that show how large activations are.
_MAGNITUDES = 1024
_SHOWN = (
    "spikes", "events", "event_bits", "additions", "shift_additions", "graded_multiply_adds", "membrane_updates",
    "multiply_adds", "multiplications", "float_additions", "exponentials", "activations", "roots", "weight_words",
    "weight_words_time", "weight_words_pass", "dense_multiply_adds",
)  # fmt: skip


def _counts(output: Output, spiking: Any, dense: Any, about: dict[str, Any], per: str, *, by_layer: bool) -> None:
    for row in [*spiking.measurements(**about), *dense.measurements(**{**about, "network": "ann"})]:
        output.add(replace(row, unit=row.unit.replace("token", per)))
    totals = {phase: spiking.total(phase) for phase in spiking.phases}
    for phase, total in totals.items():
        per_neuron = total.spikes / max(1, total.windows)
        output.measure("spikes_per_neuron", per_neuron, "spikes/neuron", **about, phase=phase)
    if not by_layer:
        return
    rows = [["spikes per neuron", *(t.spikes / max(1, t.windows) for t in totals.values())]]
    for name in _SHOWN:
        values = [getattr(total, name) / spiking.tokens[phase] for phase, total in totals.items()]
        if any(values):
            rows.append([name.replace("_", " "), *values])
    output.table(
        f"Per {per}, counted: coverage {about['coverage']}, {about['neuron']}, T = {about['timesteps']}, "
        + ", ".join(f"{spiking.tokens[phase]} {per}s of {phase}" for phase in totals),
        ["quantity", *totals],
        rows,
    )
    for phase in totals:
        tokens = spiking.tokens[phase]
        sites = [(p, f) for (of, p), f in spiking.places.items() if of == phase and f.windows]
        output.table(
            f"Sites, {phase}, per {per}",
            ["site", "spikes per neuron", "events", "additions", "dense multiply-adds"],
            [
                [path, f.spikes / f.windows, f.events / tokens, f.synaptic / tokens, f.dense_multiply_adds / tokens]
                for path, f in sites
            ],
        )


def _estimates(output: Output, found: Estimate, about: dict[str, Any], per: str) -> None:
    from fas.energy.sensitivity import measurements
    from fas.reporting.tables import energy_cells

    for row in (*found.measurements(**about), *measurements(found, **about)):
        output.add(replace(row, unit=row.unit.replace("token", per)))
    for phase in found.spiking.phases:
        cells = zip(
            *(energy_cells(found, phase, accounting) for accounting in ("paper", "compute", "memory")), strict=True
        )
        rows = [
            [
                title, found.score(network), *energies,
                *(found.ratio(phase, of, network) if network in found.baselines else None for of in _PRICED),
                *(_point(found.break_even(phase, of, network)) if network in found.baselines else "" for of in _PRICED),
            ]
            for (network, title), energies in zip(found.names.items(), cells, strict=True)
        ]  # fmt: skip
        titles = ["network", "perplexity", "paper", "compute", "memory", "spiking / it, compute", "memory"]
        titles += ["spiking wins below, compute", "memory"]
        shown = [i for i in range(len(titles)) if i != 1 or found.scores]
        output.table(
            f"{phase}: µJ per {per}, estimated with {found.prices.name}; it sends "
            f"{found.spikes_per_neuron(phase):.3g} spikes per neuron",
            [titles[i] for i in shown],
            [[row[i] for i in shown] for row in rows],
        )
    _remarks(output, found)
    _verdict(output, found)
    _hangs_on(output, found)


def _verdict(output: Output, found: Estimate) -> None:
    """Say against the fair twin who wins, and below how many spikes it would be the spiking network."""
    fair, known = found.names[found.fair], False
    for phase in found.spiking.phases:
        for accounting in _PRICED:
            ratio, point = (of(phase, accounting, found.fair) for of in (found.ratio, found.break_even))
            if ratio is not None:
                known = True
                output.text(
                    f"{phase}, {accounting}: {ratio:.3g} × the {fair}: spikes {'win' if ratio < 1 else 'lose'}. "
                    f"It sends {found.spikes_per_neuron(phase):.3g} per neuron, wins below: {_point(point)}."
                )
    if not known:
        output.text(f"{found.prices.name} prices no dense network: there is no break-even.")


def _hangs_on(output: Output, found: Estimate) -> None:
    from fas.energy.sensitivity import kinds, sensitivity

    phase, parts = found.spiking.phases[-1], kinds(found)
    if found.ratio(phase, "memory", found.fair) is None:
        return
    output.table(
        f"By kind of layer, {phase}, against the {found.names[found.fair]}",
        ["input of", "spikes per neuron", "spiking / it, compute", "memory", "wins below, compute", "memory"],
        [
            [
                kind, part.spikes_per_neuron(phase), *(part.ratio(phase, of, found.fair) for of in _PRICED),
                *(_point(part.break_even(phase, of, found.fair)) for of in _PRICED),
            ]
            for kind, part in parts.items()
        ],
    )  # fmt: skip
    for accounting in _PRICED:
        swings = sensitivity(found, phase, accounting, found.fair)[:_SWINGS]
        output.table(
            f"What the {accounting} ratio of {phase} hangs on: each price halved and doubled, other choices",
            ["price or choice", "half", "as it is", "double, or chosen"],
            [[swing.name, swing.half, swing.ratio, swing.double] for swing in swings],
        )


def _point(value: float | None) -> str:
    if value is None:
        return ""
    return "never" if value <= 0 else f"{value:.3g}"


# Accountings that know every network; the widest swings shown.
_PRICED: tuple[Accounting, ...] = ("compute", "memory")
_SWINGS = 8
_CHOICES = {
    "row": "Order row: every addition reads and writes its accumulator, one per spike in the spiking network, one per "
    "input in the others.",
    "window": "Order window: an input reads and writes its accumulators once, whatever the spikes of its window.",
    "output": "Order output: every accumulator is written once, and the inputs are read again for each.",
}


def _remarks(output: Output, found: Estimate) -> None:
    output.text(
        f"{_CHOICES[found.hardware.order]} Weights are kept for: {found.hardware.reuse}. The integer twin has as many "
        f"levels as the neurons, up to {max(found.levels.values())}, {found.activation_bits} bits; integer networks "
        f"have INT8 weights and INT{found.hardware.accumulator} accumulators; what no spike drives is "
        f"{found.hardware.precision} in every network. "
        "Accounting paper: 0.9 pJ per addition against 4.6 pJ per multiply-add, the layers after the sites alone."
    )
    unpriced = sorted({item for phase in found.spiking.phases for item in found.unpriced(phase, "memory", "snn")})
    if unpriced:
        output.text(f"{found.prices.name} has no price for: {', '.join(unpriced)}; sums with > leave them out.")
    if found.prices.unverified:
        output.text(f"Without a published source: {', '.join(found.prices.unverified)}.")


def _neurobench(output: Output, loaded: Any, batch: Any, about: dict[str, Any]) -> None:
    from fas.energy.neurobench import neurobench_metrics, neurobench_package_metrics
    from fas.errors import MissingExtraError

    own = neurobench_metrics(loaded.model, batch)
    try:
        theirs = neurobench_package_metrics(loaded.model, batch)
    except MissingExtraError as error:
        theirs = {}
        output.remark(str(error))
    for source, found in (("fas", own), ("neurobench", theirs)):
        for name, value in found.items():
            unit = "bytes" if name == "footprint" else "1"
            output.measure(name, value, unit, **about, counted_by=source)
    rows = [[name, value, theirs.get(name)] for name, value in own.items()]
    output.table("NeuroBench, per sample", ["metric", "our counts", "its package"], rows)
