"""``fas demo``: the main job on the model that comes with the package."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from fas.cli._calibration import conditions
from fas.cli.program.options import Json, Seed, Tokens, whole_numbers, words
from fas.cli.program.output import Output
from fas.data.for_model import Sample, calibration_batches
from fas.evaluation.score import Scores, measure
from fas.loading import EMBEDDED

_PROMPT = "def read(self, path):\n    with open("


def demo(
    context: typer.Context,
    timesteps: Annotated[str, typer.Option(help="T, one or several.")] = "2,4,8,16",
    coverage: Annotated[str, typer.Option(help="mlp, linear or both.")] = "mlp,linear",
    tokens: Tokens = 8192,
    test_tokens: Annotated[int, typer.Option(help="Held-out tokens to measure on.", min=2)] = 8192,
    prompt: Annotated[str, typer.Option(help="Code for the spiking network to go on with.")] = _PROMPT,
    report: Annotated[bool, typer.Option(help="Write a page with figures about what was found.")] = True,
    page: Annotated[Path, typer.Option(help="The page; its figures go to `figures` beside it, as SVG and PNG.")] = Path(
        "build/demo/report.html"
    ),
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Convert the embedded language model and compare ANN, quantised ANN and spiking network.

    The model writes Python: it was trained on the standard library, and is measured on files of it that it
    has not seen. Rate code (signed IF) at every T, beside it the ternary phase code at T = 4 and 8. The quantised
    network is the control: as many levels, no spikes. A page shows all of it, with an ablation and the energy of
    coverages mlp, linear and full.
    """
    began = time.perf_counter()
    steps, coverages = whole_numbers(timesteps, "--timesteps"), words(coverage)
    with Output.opened(context, as_json) as output:
        from fas.loading import load
        from fas.methods.fas import FAS

        # Every combination is checked before the first is measured.
        plans = [FAS(coverage=c, timesteps=t) for c in coverages for t in steps]  # type: ignore[arg-type]
        digits = [{"coverage": c, "timesteps": t, "neuron": "ternary_phase"} for c in coverages for t in (4, 8)]
        plans += [FAS(**options) for options in digits]  # type: ignore[arg-type]
        shown = _shown(plans)
        report = report and _can_draw(output)
        loaded = load(EMBEDDED)
        scores = Scores(loaded, "stdlib", split="heldout", limit=test_tokens, window=256, stride=128)
        batches = calibration_batches(loaded, "stdlib", Sample(tokens, 256, seed=seed))
        reference = measure(output, loaded, scores)[0]["perplexity"]
        rows: list[list[Any]] = [["", "", None, None, "ann", reference, 1.0, None]]
        album: Any = None
        if report:
            from fas.cli._album import Album

            album = Album(output, loaded, scores, batches, shown, seed=seed)
        for done, plan in enumerate(plans):
            output.remark(f"{done + 1} of {len(plans)}: {plan.coverage}, {plan.neuron}, T = {plan.timesteps}")
            _convert(loaded, plan, batches)
            for network in ("quantised", "snn"):
                loaded.model.network = network
                found, spikes = measure(output, loaded, scores, plan="fas")
                value, levels = found["perplexity"], conditions(loaded)["levels"]
                about = [plan.coverage, plan.neuron, plan.timesteps, levels, network]
                rows.append([*about, value, value / reference, spikes])
            if plan is shown:
                text = _write(loaded, prompt)
            if album is not None:
                album.keep(plan)
            _revert(loaded)
        output.table(
            f"Perplexity on {len(scores.stream)} held-out tokens of the standard library; quantised: the control",
            ["coverage", "neuron", "T", "levels", "network", "perplexity", "× ANN", "spikes per neuron"],
            rows,
        )
        output.text(f"The spiking network ({shown.coverage}, {shown.neuron}, T = {shown.timesteps}) writes:\n\n{text}")
        if album is not None:
            findings = album.findings(context.obj.command, (prompt, text.removeprefix(prompt)))
            _publish(output, replace(findings, seconds=time.perf_counter() - began), page)


def _shown(plans: list[Any]) -> Any:
    """Return the plan whose network writes: rate code, most layers, T = 8 or the largest."""
    rate = [plan for plan in plans if plan.neuron == "signed_if" and plan.coverage == plans[-1].coverage]
    return next((plan for plan in rate if plan.timesteps == 8), rate[-1])


def _convert(loaded: Any, plan: Any, batches: Any) -> None:
    from fas.conversion import convert

    convert(loaded.model, plan, calibration=batches)


def _revert(loaded: Any) -> None:
    from fas.conversion import revert

    revert(loaded.model)


def _write(loaded: Any, prompt: str) -> str:
    import torch

    inputs = loaded.tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        ids = loaded.model.generate(**inputs, max_new_tokens=80, do_sample=False, repetition_penalty=1.1)
    text: str = loaded.tokenizer.decode(ids[0], skip_special_tokens=True)
    return text


def _can_draw(output: Output) -> bool:
    """Say on both ends of a long run that there will be no page where the library for it is missing."""
    from fas.errors import MissingExtraError
    from fas.reporting.theme import style

    try:
        with style():
            return True
    except MissingExtraError as error:
        output.text(f"No page will be written: {error}")
        return False


def _publish(output: Output, findings: Any, page: Path) -> None:
    from fas.reporting.page import write_report

    written = write_report(findings, page, figures=page.parent / "figures")
    drawn = sorted({path.stem for path in written[1:]})
    about = {"model": EMBEDDED, "network": "snn", "page": str(page), "files": len(written)}
    output.measure("demo_time", findings.seconds, "s", **about)
    output.text(
        f"\nWrote {page}, which opens in any browser: {', '.join(drawn)}; tables of methods, ablation, sites, energy "
        f"and coverages. The figures alone are in {page.parent / 'figures'} (SVG, PNG)."
    )
