"""``fas demo``: the language model that comes with the package."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

import fas
from fas.cli.compare import show
from fas.cli.program.options import Json, Seed, Tokens, whole_numbers, words
from fas.cli.program.output import Output
from fas.loading import EMBEDDED

_PROMPT = "def read(self, path):\n    with open("


def demo(
    context: typer.Context,
    timesteps: Annotated[str, typer.Option(help="T, one or several.")] = "4,8",
    coverage: Annotated[str, typer.Option(help="mlp, linear or both.")] = "linear",
    tokens: Tokens = 4096,
    test_tokens: Annotated[int, typer.Option(help="Held-out tokens to measure on.", min=2)] = 8192,
    prompt: Annotated[str, typer.Option(help="Code for the spiking network to continue.")] = _PROMPT,
    report: Annotated[bool, typer.Option(help="Write a page with figures about the results.")] = True,
    page: Annotated[
        Path, typer.Option(help="The page; its figures go into the folder `figures` next to it, as SVG and PNG.")
    ] = Path("build/demo/report.html"),
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Convert the embedded language model, measure it beside the dense one, and let it write.

    The model writes Python: it was trained on the standard library, and is measured on files that it has not seen. At
    every T it is converted with a rate code (signed_if) and with the default code (adaptive_digit). A page shows the
    results, and the sites and energy of the last conversion.
    """
    began = time.perf_counter()
    steps, coverages = whole_numbers(timesteps, "--timesteps"), words(coverage)
    with Output.opened(context, as_json) as output:
        from fas.data.for_model import Sample, calibration_batches
        from fas.reporting.look import look
        from fas.reporting.page import write_report

        # Every combination is checked before the first is measured.
        plans = [
            fas.FAS(coverage=c, timesteps=t, neuron=n)  # type: ignore[arg-type]
            for n in ("signed_if", "adaptive_digit")
            for c in coverages
            for t in sorted(steps)
        ]
        report = report and _can_draw(output)
        loaded = fas.load(EMBEDDED)
        with output.progress("comparing") as progress:
            found = fas.compare(
                loaded, plans, tokens=tokens, test_tokens=test_tokens, window=256, accounting=None, seed=seed,
                kept=output.keep(EMBEDDED), progress=progress,
            )  # fmt: skip
            output.add(*found.measurements)
            show(output, found)
            batches = calibration_batches(loaded, "stdlib", Sample(tokens, 256, seed=seed))
            fas.convert(loaded.model, shown := plans[-1], calibration=batches, progress=progress)
            text = _write(loaded, prompt)
            output.text(f"\nWith {shown.neuron}, {shown.coverage}, T = {shown.timesteps} it writes:\n\n{text}")
            if not report:
                return
            findings = look(
                loaded, "stdlib", test_tokens=min(test_tokens, 2048), prices=("45nm", "45nm-dram", "loihi"),
                window=256, seed=seed, command=context.obj.command, progress=progress, results=output.measurements,
                sample=(prompt, text.removeprefix(prompt)),
            )  # fmt: skip
        seconds, figures = time.perf_counter() - began, page.parent / "figures"
        written = write_report(replace(findings, seconds=seconds), page, figures=figures)
        stated: dict[str, Any] = {"model": EMBEDDED, "network": "snn", "page": str(page)}
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
