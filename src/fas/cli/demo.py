"""``fas demo``: the main job on the model that comes with the package."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

import fas
from fas.cli.program.options import Json, Seed, Tokens, whole_numbers, words
from fas.cli.program.output import Output
from fas.loading import EMBEDDED

_PROMPT = "def read(self, path):\n    with open("


def demo(
    context: typer.Context,
    timesteps: Annotated[str, typer.Option(help="T, one or several.")] = "4,8",
    coverage: Annotated[str, typer.Option(help="mlp, linear or both.")] = "mlp,linear",
    tokens: Tokens = 8192,
    test_tokens: Annotated[int, typer.Option(help="Held-out tokens to measure on.", min=2)] = 8192,
    prompt: Annotated[str, typer.Option(help="Code for the spiking network to continue.")] = _PROMPT,
    report: Annotated[bool, typer.Option(help="Write a page with figures about what was found.")] = True,
    page: Annotated[Path, typer.Option(help="The page; its figures go to `figures` beside it, as SVG and PNG.")] = Path(
        "build/demo/report.html"
    ),
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Convert the embedded language model and compare ANN, quantised ANN and spiking network.

    The model writes Python: it was trained on the standard library, and is measured on files of it that it
    has not seen. At every T the default code (signed digits), beside it the rate code (signed IF). The quantised
    network has as many levels and no spikes. A page shows all of it, with the sites and the energy of one of them:
    signed digits, most layers, most steps.
    """
    began = time.perf_counter()
    steps, coverages = whole_numbers(timesteps, "--timesteps"), words(coverage)
    with Output.opened(context, as_json) as output:
        from fas.data.for_model import Sample, calibration_batches
        from fas.evaluation.score import measure, scores_on
        from fas.reporting.look import look
        from fas.reporting.page import write_report

        # Every combination is checked before the first is measured.
        plans = [
            fas.FAS(coverage=c, timesteps=t, neuron=n)  # type: ignore[arg-type]
            for n in ("signed_if", "signed_digit")
            for c in coverages
            for t in sorted(steps)
        ]
        shown, text, findings = plans[-1], "", None
        report = report and _can_draw(output)
        loaded = fas.load(EMBEDDED)
        scores = scores_on(loaded, "stdlib", split="heldout", limit=test_tokens, window=256, stride=128)
        batches = calibration_batches(loaded, "stdlib", Sample(tokens, 256, seed=seed))
        output.add(*measure(loaded, scores))
        reference = output.measurements[0].value
        rows: list[list[Any]] = [["", "", None, None, "ann", reference, 1.0, None]]
        for done, plan in enumerate(plans):
            output.remark(f"{done + 1} of {len(plans)}: {plan.coverage}, {plan.neuron}, T = {plan.timesteps}")
            with output.progress("converting and measuring") as progress:
                fas.convert(loaded.model, plan, calibration=batches, progress=progress)
                for network in ("quantised", "snn"):
                    loaded.model.network = network
                    found = measure(loaded, scores, progress=progress, plan="fas")
                    output.add(*found)
                    value, spikes = found[0].value, found[1].value if len(found) > 1 else None
                    about = [plan.coverage, plan.neuron, plan.timesteps, found[0].conditions["levels"], network]
                    rows.append([*about, value, value / reference, spikes])
                if plan is shown:
                    text = _write(loaded, prompt)
                if plan is shown and report:
                    findings = look(
                        loaded, "stdlib", test_tokens=min(test_tokens, 2048), prices=("45nm", "45nm-dram", "loihi"),
                        window=256, seed=seed, command=context.obj.command, progress=progress,
                    )  # fmt: skip
                fas.revert(loaded.model)
        output.table(
            f"Perplexity on {test_tokens} held-out tokens of the standard library",
            ["coverage", "neuron", "T", "levels", "network", "perplexity", "× ANN", "spikes per neuron"],
            rows,
        )
        output.text(f"The spiking network ({shown.coverage}, {shown.neuron}, T = {shown.timesteps}) writes:\n\n{text}")
        if findings is not None:
            seconds, sample = time.perf_counter() - began, (prompt, text.removeprefix(prompt))
            planned = [row for row in output.measurements if row.unit == "1" or "plan" in row.conditions]
            findings = replace(findings, seconds=seconds, sample=sample, results=planned)
            figures = page.parent / "figures"
            stated: dict[str, Any] = {"model": EMBEDDED, "network": "snn", "page": str(page)}
            written = write_report(findings, page, figures=figures)
            output.measure("demo_time", seconds, "s", **stated, files=len(written))
            output.text(f"\nWrote {page}, which opens in any browser, and its figures to {figures} (SVG, PNG).")


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
