"""``fas map``: how many cores and chips a converted model would take, and what would pass between chips."""

from __future__ import annotations

from typing import Annotated

import typer

from fas.cli.program.options import Device, Json, Model, Seed, Window
from fas.cli.program.output import Output


def map(
    context: typer.Context,
    model: Model,
    chip: Annotated[str, typer.Option(help="loihi2, spinnaker2, or a TOML file of the same form.")] = "loihi2",
    data: Annotated[
        str | None, typer.Option(help="Text source, or table, to measure spikes on: its test part; none if not given.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens to measure on.", min=1)] = 512,
    window: Window = None,
    device: Device = "cpu",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Estimate neurons, synapses, cores and chips of a converted model, and its messages between chips.

    The sites of the model are placed one after the other. Traffic is stated where `--data` names a text or table to
    measure spikes on. What no spike drives (normalisation, softmax, embeddings) is not placed: `fas inspect` lists it.

    Example: `fas map gpt2-snn --chip spinnaker2 --data wikitext`
    """
    with Output.opened(context, as_json) as output:
        from fas.cli._calibration import conditions
        from fas.cli._counted import add
        from fas.data.for_model import Sample, held_out_batches
        from fas.exporting.chip import load_chip
        from fas.exporting.mapping import map_to_chip
        from fas.loading import load
        from fas.surgery.probe import probe_inputs

        described = load_chip(chip)
        loaded = load(model, device)
        loaded.need_converted()
        inputs = probe_inputs(loaded.model)
        about = conditions(loaded)
        if data is not None:
            batches = held_out_batches(loaded, data, Sample(tokens, window, tokens, seed))
            inputs, about = batches[0], {**about, "data": data, "tokens": batches[0]["input_ids"].numel()}
        found = map_to_chip(loaded.model, described, inputs, spikes=data is not None)
        for row in found.measurements(**about):
            add(output, row)
        columns = ["site", "neurons", "outputs", "synapses", "weights", "cores", "chips"]
        names = ["neurons", "outputs", "synapses", "weights", "cores"]
        if found.unit is not None:
            columns += [f"spikes/{found.unit}", f"deliveries/{found.unit}", f"off chip/{found.unit}"]
            names += ["spikes", "deliveries", "off_chip"]
        shown = names.index("cores") + 1
        rows = []
        for p in found.placements:
            cells = [getattr(p, name) for name in names]
            rows.append([p.site, *cells[:shown], "–".join(str(i + 1) for i in sorted(set(p.chips))), *cells[shown:]])
        totals = [int(found.total(name)) if i < shown else found.total(name) for i, name in enumerate(names)]
        rows.append(["all", *totals[:shown], str(found.chips), *totals[shown:]])
        output.table(f"{loaded.name} on {described.name}: {described.title}", columns, rows)
        used = f"Weights take {found.memory_used:.0%} of the memory of these cores, units {found.units_used:.0%}"
        if found.unit is not None:
            bits = found.total("off_chip") * described.message_bits
            used += f"; {bits:.4g} bits/{found.unit} leave a chip"
        output.text(f"{used}.")
        if found.left:
            output.text(f"Not placed: {len(found.left)} sites ({', '.join(dict.fromkeys(found.left.values()))}).")
        if described.assumptions:
            output.text(f"Assumed, not from a source that was read: {', '.join(described.assumptions)}.")
