"""Looking at one converted network from all sides: what a report shows."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fas.data.for_model import Sample, calibration_batches, default_data, held_out_batches, is_classifier
from fas.energy.bill import Hardware
from fas.energy.estimate import Estimate, count_both, levels_of
from fas.energy.prices import Prices, load_prices
from fas.evaluation.kept import Kept
from fas.evaluation.score import measure as score
from fas.evaluation.score import scores_on
from fas.loading import loaded_of
from fas.reporting import measure
from fas.reporting.findings import Findings
from fas.reporting.page import write_report
from fas.runtime.conditions import versions
from fas.types import Measurement, Progress

# Tokens written after each prompt, to see decoding.
_NEW_TOKENS = 8
_MARGINS = tuple(0.25 * i for i in range(33))
# Tokens that show where coarse thresholds lie.
_COARSE_TOKENS = 512
_FACTS = {
    "method": "method", "coverage": "coverage", "neuron": "neuron", "timesteps": "time steps", "levels": "levels",
    "schedule": "schedule", "operators": "operators", "execution": "execution",
}  # fmt: skip


def report(
    model: Any, out: str | Path, data: str | Path | None = None, *, figures: Path | None = None, **asked: Any
) -> list[Path]:
    """Write one self-contained HTML page about a spiking network: quality, firing, thresholds, errors, energy.

    Args:
        model: a name, what ``fas.load`` returns, or a converted transformers model.
        out: the page.
        data: text source, or table, to measure on: its test part. The embedded model brings its own.
        figures: folder for every figure as SVG and PNG.
        asked: further arguments of ``fas.reporting.look.look``.

    Returns:
        The files written, the page first.

    Raises:
        CheckpointError: a dense model.
        MissingExtraError: matplotlib is not installed.

    Example:
        >>> fas.report("gpt2-snn", "gpt2.html", "wikitext")  # doctest: +SKIP
        [PosixPath('gpt2.html')]
    """
    return write_report(look(model, data, **asked), Path(out), figures=figures)


def look(
    model: Any,
    data: str | Path | None = None,
    *,
    tokenizer: Any = None,
    timesteps: Sequence[int] = (),
    test_tokens: int = 2048,
    tokens: int = 512,
    calibration_data: str | Path | None = None,
    coarse: bool = True,
    anytime: bool = True,
    prices: Sequence[str | Path | Prices] = ("45nm",),
    results: Sequence[Measurement] = (),
    sample: tuple[str, str] | None = None,
    window: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
    command: str = "",
    kept: Kept | None = None,
    progress: Progress | None = None,
) -> Findings:
    """Return everything that a report shows of a converted, calibrated model, which is left as it was.

    Args:
        model: a name, what ``fas.load`` returns, or a converted transformers model.
        data: text source, or table, to measure on: its test part.
        tokenizer: of a transformers model; that of the place it was loaded from if None.
        timesteps: T to try, at thresholds as calibrated; the model's own, half and a quarter of it if none is named.
        test_tokens: to score on.
        tokens: to count operations and spikes on.
        calibration_data: where coarse thresholds are fitted; ``data`` if None.
        coarse: fit coarse thresholds once more, to show what fine ones change.
        anytime: try early exit, where the network can.
        prices: cost models; the first is drawn.
        results: rows of other commands, shown too.
        sample: a prompt, and what the network wrote after it.
        window: tokens per window.
        batch_size: windows or rows per call.
        seed: of the choice of windows.
        command: that makes the report.
        kept: keeps the scores, for a run that is killed (``fas.evaluation.kept``).
        progress: called with what is done, parts done and in all.

    Raises:
        CheckpointError: a dense model.
        DataError: no data.
        ValueError: no prices.
    """
    began = time.perf_counter()
    cost_models = [cost if isinstance(cost, Prices) else load_prices(cost) for cost in prices]
    if not cost_models:
        raise ValueError("prices name no cost model: pass 45nm, or another one")
    loaded = loaded_of(model, tokenizer)
    loaded.need_converted()
    network, source = loaded.model, default_data(loaded, None if data is None else str(data))
    part = Sample(tokens, window, batch_size, seed, "--counted-tokens")
    batches = held_out_batches(loaded, source, part)
    scores = scores_on(loaded, source, limit=test_tokens, window=window, batch_size=batch_size)
    own = network.timesteps
    steps = sorted({*(timesteps or (max(1, own // 4), max(1, own // 2))), own})
    prefill = Estimate(*count_both(network, batches, progress=progress), levels_of(network), Hardware(cost_models[0]))
    names: list[str] = []

    def chief() -> float:
        scored = partial(score, loaded, scores, kept=kept, progress=progress)
        found = scored() if kept is None else kept.part(f"quality {loaded.conditions}", scored)
        names.append(found[0].quantity)
        return found[0].value

    quality = measure.quality_over_time(network, chief, steps, batches, prefill)
    before = None
    if coarse:
        place = source if calibration_data is None else str(calibration_data)
        some = calibration_batches(loaded, place, replace(part, tokens=max(_COARSE_TOKENS, window or 0)))
        before = measure.coarse_thresholds(network, some, progress)
    writes = loaded.generates and network.main_input_name == "input_ids"
    shown: list[dict[str, Any]] = [dict(batch) for batch in batches]
    if writes:
        # Prompts leave room for what is written after them.
        shown = [{name: value[:, : max(1, value.shape[1] - _NEW_TOKENS)] for name, value in b.items()} for b in shown]
    counts = count_both(network, shown, new_tokens=_NEW_TOKENS if writes else 0, progress=progress)
    stops = anytime and writes and not network.config.is_encoder_decoder and not is_classifier(loaded)
    about = loaded.conditions
    return Findings(
        name=Path(loaded.name).name,
        facts={title: str(about[name]) for name, title in _FACTS.items() if name in about},
        score=names[0],
        quality=quality,
        sites=measure.site_findings(network, batches, before),
        rasters=measure.rasters(network, batches[0]),
        agreement=measure.agreement(network, batches[0]),
        estimates=[Estimate(*counts, levels_of(network), Hardware(cost)) for cost in cost_models],
        exits=measure.early_exits(network, batches[0], _MARGINS) if stops else [],
        results=list(results),
        sample=sample,
        command=command,
        versions={**versions(), "matplotlib": version("matplotlib"), "Python": platform.python_version()},
        seconds=time.perf_counter() - began,
        data=source,
    )
