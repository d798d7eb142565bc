"""The verb: a converted model for other simulators, in whole numbers, or placed on a chip."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from fas.data.for_model import Sample, calibration_batches, default_data, held_out_batches
from fas.errors import DataError, FASError
from fas.evaluation.score import scores_on
from fas.loading import Loaded, loaded_of
from fas.saving import check_writable
from fas.surgery.probe import probe_inputs
from fas.types import Measurement, Progress

NIR, FIXED_POINT = "nir", "fixed-point"
_FIGURES = ("relative_error", "weight_error", "threshold_error", "spike_errors")


def export(
    model: Any,
    to: str,
    out: str | Path | None = None,
    data: str | Path | None = None,
    *,
    tokenizer: Any = None,
    sites: Sequence[str] | None = None,
    tokens: int | None = None,
    window: int | None = None,
    membrane_bits: Literal[16, 24] = 16,
    test_tokens: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Measurement]:
    """Write a converted model block by block, as NIR graphs or in whole numbers, or estimate its place on a chip.

    Args:
        model: a name, what ``fas.load`` returns, or a converted transformers model; its T and schedule hold.
        to: ``nir``: a graph per site with what it receives and answers, and the settings with which snnTorch,
            SpikingJelly, sinabs and Norse send the same spikes; ``fixed-point``: 8-bit weights, integer thresholds
            and power-of-two scales; ``loihi2``, ``spinnaker2`` or a TOML file of the same form: nothing is written,
            cores and messages of that chip are estimated.
        out: directory for ``nir``, file for ``fixed-point``.
        data: text source to run on; for a chip its test part, and none measures no spikes.
        tokenizer: of a transformers model; that of the place it was loaded from if None.
        sites: export these only.
        tokens: to run on; 32 for blocks, 512 on a chip, if None.
        window: tokens per row.
        membrane_bits: of thresholds and potentials in whole numbers.
        test_tokens: score the whole model in whole numbers on so many test tokens.
        seed: of the choice of rows.
        progress: called while the model is scored.

    Returns:
        What the blocks cost beside the model, by site; or what sites take on the chip, and all of them.

    Raises:
        CheckpointError: a dense model.
        DataError: a model for which no data is read by name.
        FASError: a place that holds something else.
        ValueError: no place to write to, or no chip of that name.

    Example:
        >>> rows = fas.export("gpt2-snn", "nir", "gpt2-nir", "wikitext")  # doctest: +SKIP
        >>> max(row.value for row in rows if row.quantity == "spike_mismatches")  # doctest: +SKIP
        0.0
    """
    source = None if data is None else str(data)
    if to not in (NIR, FIXED_POINT):
        return _on_chip(loaded_of(model, tokenizer), to, source, tokens or 512, window, seed)
    if out is None:
        raise ValueError(f"export to {to} writes blocks: name a place for them (--out)")
    place = Path(out)
    _check_place(place, to)
    loaded = loaded_of(model, tokenizer)
    loaded.need_converted()
    if loaded.model.main_input_name != "input_ids":
        raise DataError(
            f"{loaded.name} takes {loaded.model.main_input_name}, which cannot be read by name: call "
            "fas.exporting.nir.export_nir(model, directory, inputs) in Python"
        )
    source, rows = default_data(loaded, source), tokens or 32
    length = min(rows, window or rows, loaded.context or rows)
    batches = calibration_batches(loaded, source, Sample(rows, length, rows, seed))
    about = {**loaded.conditions, "data": source, "tokens": rows}
    if to == NIR:
        return _nir(loaded, place, batches[0], sites, rows, about)
    found = _fixed_point(loaded, place, batches[0], sites, rows, about, membrane_bits)
    return [*found, *_scored(loaded, place, source, test_tokens, progress)] if test_tokens else found


def _nir(loaded: Loaded, out: Path, inputs: Any, sites: Any, rows: int, about: dict[str, Any]) -> list[Measurement]:
    from fas.exporting.nir import export_nir

    found = []
    for check in export_nir(loaded.model, out, inputs, sites=sites, rows=rows, about={"model": loaded.name}):
        stated = {**about, "site": check.site}
        found += [
            Measurement("spikes", check.spikes, "spikes", conditions=stated),
            Measurement("spike_mismatches", check.mismatches, "spikes", conditions={**stated, "of": check.compared}),
            Measurement("relative_error", check.error, "1", conditions=stated),
        ]
    return found


def _fixed_point(
    loaded: Loaded, out: Path, inputs: Any, sites: Any, rows: int, about: dict[str, Any], bits: Literal[16, 24]
) -> list[Measurement]:
    from fas.exporting.fixed_point import export_fixed_point

    found = []
    for cost in export_fixed_point(loaded.model, out, inputs, membrane_bits=bits, sites=sites, rows=rows):
        stated = {**about, "weight_bits": 8, "membrane_bits": bits, "site": cost.site}
        found += [Measurement(name, getattr(cost, name), "1", conditions=stated) for name in _FIGURES]
        found.append(Measurement("saturated", cost.saturated, "potentials", conditions=stated))
        found.append(Measurement("accumulator", cost.accumulator_bits, "bits", conditions=stated))
    return found


def _scored(loaded: Loaded, file: Path, source: str, limit: int, progress: Progress | None) -> list[Measurement]:
    """Say what the written file costs from end to end: the score of the model, and with its parameters."""
    from fas.exporting.fixed_point import load_fixed_point
    from fas.exporting.rounded import rounded

    scores, fixed = scores_on(loaded, source, limit=limit), load_fixed_point(file)
    before, about = scores.of(loaded, progress)
    with rounded(loaded.model, fixed):
        after, _ = scores.of(loaded, progress)
    about = {**loaded.conditions, **about}
    whole = {**about, "weight_bits": 8, "membrane_bits": fixed[0].membrane_bits}
    return [
        Measurement(name, float(value), "1", conditions=stated)
        for scored, stated in ((before, about), (after, whole))
        for name, value in scored.items()
    ]


def _on_chip(
    loaded: Loaded, to: str, source: str | None, tokens: int, window: int | None, seed: int
) -> list[Measurement]:
    from fas.exporting.mapping import load_chip, map_to_chip

    chip = load_chip(to)
    loaded.need_converted()
    about, inputs = loaded.conditions, probe_inputs(loaded.model)
    if source is not None:
        batches = held_out_batches(loaded, source, Sample(tokens, window, tokens, seed))
        inputs, about = batches[0], {**about, "data": source, "tokens": batches[0]["input_ids"].numel()}
    return list(map_to_chip(loaded.model, chip, inputs, spikes=source is not None).measurements(**about))


def _check_place(out: Path, to: str) -> None:
    """Refuse, before the work begins, a place that holds something else."""
    from fas.exporting.nir import SIDECAR

    check_writable(out)
    if to == FIXED_POINT:
        if out.is_dir():
            raise FASError(f"{out} is a directory: name a file, as {out / 'model.safetensors'}")
        return
    if out.exists() and not out.is_dir():
        raise FASError(f"{out} is a file: name a directory to write to")
    if out.is_dir() and any(out.iterdir()) and not (out / SIDECAR).is_file():
        raise FASError(f"{out} holds other files: name a new directory, or an earlier export to replace")
