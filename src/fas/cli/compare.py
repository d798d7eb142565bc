"""``fas compare``: one model by several methods, codes and numbers of time steps, in one table."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

import fas
from fas.cli.program import options
from fas.cli.program.output import Output, rows_as_json
from fas.types import Measurement
from fas.words import span, value_of

if TYPE_CHECKING:
    from fas.comparison import Comparison, Plan, Row

# Seconds that a row of an earlier run takes at most.
_RESUMED = 0.5
# Each part of the calibration on top of those before it.
_PARTS: dict[str, dict[str, bool]] = {
    "none (maximum)": {"coarse": False, "fine": False},
    "coarse": {"coarse": True, "fine": False},
    "coarse + fine": {"coarse": True, "fine": True},
}


def compare(
    context: typer.Context,
    model: options.Model,
    methods: Annotated[
        str,
        typer.Option(
            help="Recipes (files of fas.methods), comma-separated, or `all`; fields of a recipe after a colon: "
            "`rate_norm:fit_epochs=3,threshold_balancing:rule=percentile`."
        ),
    ] = "fas",
    timesteps: Annotated[str, typer.Option(help="T, one or several.")] = "4,8",
    coverage: Annotated[str, typer.Option(help="mlp, linear, full: one or several.")] = "linear",
    neuron: Annotated[
        str | None, typer.Option(help="Neurons, each NAME or NAME:FIELD=VALUE, for methods that leave the choice.")
    ] = None,
    ablate: Annotated[
        bool,
        typer.Option(
            "--ablate",
            help="For methods that calibrate (fas): what each part is worth. One row each for thresholds by maximum, "
            "coarse, coarse and fine, and with the losses.",
        ),
    ] = False,
    losses: Annotated[bool, typer.Option(help="With --ablate: add a row with the losses; takes minutes.")] = True,
    data: options.Data = None,
    test_data: options.TestData = None,
    builder: options.Builder = None,
    accounting: Annotated[
        Literal["paper", "compute", "memory", "none"],
        typer.Option(help="Of the energy column, with 45nm prices."),
    ] = "compute",
    train_steps: Annotated[
        int,
        typer.Option(
            help="Steps of stage 1 for methods that have it, and for the control: the dense model trained on the same "
            "data.",
            min=0,
        ),
    ] = 0,
    out: Annotated[Path | None, typer.Option(help="JSON file for all rows, rewritten after every combination.")] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw score over T and against spikes per neuron: an svg, png or pdf file."),
    ] = None,
    tokens: options.Tokens = 16384,
    test_tokens: options.TestTokens = 16384,
    images: Annotated[int, typer.Option(help="Images to calibrate on, equally many of every class.", min=1)] = 256,
    test_images: Annotated[int, typer.Option(help="Images to measure on, equally many of every class.", min=1)] = 1000,
    window: options.Window = None,
    batch_size: options.BatchSize = 8,
    device: options.Device = "cpu",
    seed: options.Seed = 0,
    as_json: options.Json = False,
) -> None:
    """Convert a dense model in every combination, measure each result, and show them side by side.

    Compare systems by levels and spikes per neuron, not by T alone. If a method refuses a combination, the
    reason stands below the table. Quantised networks with levels of their own get T of them. Run an interrupted
    comparison again with the same command, and it resumes.

    Example: `fas compare embedded --methods fas --neuron signed_if,phase --timesteps 2,4,8 --plot build/compare.svg`

    Example: `fas compare embedded --ablate --timesteps 8`
    """
    with Output.opened(context, as_json) as output:
        from fas.plain_networks import load_either
        from fas.reporting.result_figures import check_drawing, draw
        from fas.saving import check_writable

        if out is not None:
            check_writable(out)
        if plot is not None:
            check_drawing(plot)
        steps = options.whole_numbers(timesteps, "--timesteps")
        plans = list(_plans(methods, steps, options.words(coverage), options.words(neuron or "")))
        if ablate:
            plans = list(_parts(plans, losses))
        began, spent, dense = time.monotonic(), list[float](), None

        def measured(row: Row, done: int, total: int) -> None:
            nonlocal began, dense
            output.add(*row.stated)
            if out is not None:
                _write(out, [*output.measurements])
            now = time.monotonic()
            if not done:
                began, dense = now, row.value
                output.remark(f"dense: {row.score} {row.value:.4g}")
                return
            began, took = now, now - began
            # Rows of an earlier run cost nothing.
            spent.extend([took] if took > _RESUMED else [])
            left = sum(spent) / max(1, len(spent)) * (total - done)
            output.remark(f"{_in_words(row, dense)}; {done} of {total} done, about {span(left)} left")

        kept = output.keep(model, data, test_data, builder)
        with output.progress("comparing") as progress:
            found = fas.compare(
                load_either(model, device, builder), plans, data, test_data=test_data, tokens=tokens,
                test_tokens=test_tokens, window=window, batch_size=batch_size, images=images, test_images=test_images,
                accounting=None if accounting == "none" else accounting, train_steps=train_steps, seed=seed, kept=kept,
                measured=measured, progress=progress,
            )  # fmt: skip
        output.measurements.clear()
        output.add(*found.measurements)
        show(output, found, None if accounting == "none" else accounting, train_steps)
        if out is not None:
            _write(out, output.measurements)
            output.remark(f"written to {out}")
        if plot is not None:
            draw([row for row in output.measurements if row.quantity != "energy"], plot)
            output.remark(f"drawn to {plot}")


def _in_words(row: Row, dense: float | None) -> str:
    """Return what a row has found, in a line."""
    about = f"{row.plan}, {row.about.get('neuron', '')}, {row.about.get('coverage', '')}".rstrip(", ")
    if row.refused is not None:
        return f"{row.plan}, T = {row.timesteps}: {row.refused}"
    spikes = row.figure("spikes_per_neuron")
    ratio = f" ({row.value / dense:.4f} × dense)" if dense and row.score == "perplexity" else ""
    fires = "" if spikes is None else f", {spikes:.2f} spikes per neuron"
    return f"{about}, T = {row.timesteps}: {row.score} {row.value:.4g}{ratio}{fires}"


def _plans(methods: str, steps: list[int], coverages: list[str], neurons: list[str]) -> Iterator[Plan]:
    from dataclasses import fields

    from fas import registry
    from fas.comparison import Plan
    from fas.config import build_method

    for text in registry.available("methods") if methods.strip() == "all" else options.words(methods):
        name, *settings = text.split(":")
        known = {field.name for field in fields(registry.load("methods", name))}
        given = dict(_setting(name, setting, known) for setting in settings)
        choices: dict[str, list[Any]] = {"coverage": coverages, "neuron": neurons, "timesteps": steps}
        axes = {
            option: values for option, values in choices.items() if option in known and values and option not in given
        }
        for values in product(*axes.values()):
            chosen = {**given, **dict(zip(axes, values, strict=True))}
            title = " ".join([name, *(s for s in settings if not s.startswith(("coverage", "neuron")))])
            try:
                method: Any = build_method(name, chosen)
                if "levels" not in given and method.levels is not None:
                    method = method.with_options(levels=method.timesteps)
                yield Plan(title, method, timesteps=method.timesteps)
            except ValueError as error:
                yield Plan(title, None, refused=str(error), timesteps=chosen.get("timesteps"))


def _parts(plans: list[Plan], losses: bool) -> Iterator[Plan]:
    """Yield the parts of the calibration of every plan, each part on top of those before it."""
    from dataclasses import replace

    for plan in plans:
        if plan.method is None or not (hasattr(plan.method, "coarse") and hasattr(plan.method, "fine")):
            reason = plan.refused or "its calibration has no parts coarse and fine"
            yield replace(plan, method=None, refused=reason)
            continue
        prefix = "" if plan.name == "fas" else f"{plan.name}: "
        for part, switches in _PARTS.items():
            yield replace(plan, name=prefix + part, method=plan.method.with_options(**switches))
        if losses:
            yield replace(plan, name=f"{prefix}coarse + fine + losses", losses=True)


def _setting(method: str, text: str, known: set[str]) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or name not in known:
        raise ValueError(f"--methods says {method}:{text}; expected FIELD=VALUE with one of {', '.join(sorted(known))}")
    return name, value_of(value)


def show(output: Output, found: Comparison, accounting: str | None = None, train_steps: int = 0) -> None:
    """Show the rows of a comparison as a table, and below it what was refused and why."""
    shown = [row for row in found.rows if row.refused is None]
    kinds = list(dict.fromkeys(row.floats for row in shown if row.floats))
    per = "image" if "images" in found.dense.about else "token"
    letter = {kind: chr(ord("a") + i % 26) for i, kind in enumerate(kinds)}
    intervals = [None if (ends := found.interval(row)) is None else "{:.4f} to {:.4f}".format(*ends) for row in shown]
    columns: dict[str, list[Any]] = {
        "plan": [row.plan for row in shown],
        "coverage": [row.about.get("coverage") for row in shown],
        "neuron": [row.about.get("neuron") for row in shown],
        "T": [row.about.get("timesteps") for row in shown],
        "levels": [row.about.get("levels") for row in shown],
        found.dense.score: [row.value for row in shown],
        "× ANN" if found.dense.score == "perplexity" else "− ANN": [found.relation(row) for row in shown],
        **({"95 %": intervals} if any(intervals) else {}),
        "spikes per neuron": [row.figure("spikes_per_neuron") for row in shown],
        "float": [letter.get(row.floats) for row in shown],
        "s": [row.figure("conversion_time") for row in shown],
    }
    if train_steps:
        columns["training s"] = [row.figure("training_time") for row in shown]
    title = f"{found.dense.about['model']}, {found.dense.about['data']}; dense: "
    title += f"{found.dense.score} {found.dense.value:.4g}"
    if accounting is not None:
        energies = [row.figure("energy") or row.figure("energy", "ann") for row in shown]
        columns[f"µJ/{per}, {accounting}"] = [None if energy is None else energy / 1e6 for energy in energies]
        dense = next((e for row in shown if (e := row.figure("energy", "ann")) is not None), None)
        title += "" if dense is None else f", {dense / 1e6:.4g} µJ/{per}"
    output.table(title, list(columns), list(zip(*columns.values(), strict=True)))
    for kind in kinds:
        output.text(f"float {letter[kind]}: {', '.join(kind)}")
    if accounting is not None:
        output.text(f"Energies are estimates (45nm, accounting {accounting}); counts are measured.")
    _say_what_trained(output, found, train_steps)
    refused: dict[str, list[str]] = {}
    for row in found.rows:
        if row.refused is not None:
            refused.setdefault(row.refused, []).append(f"{row.plan}, T = {row.timesteps}")
    for reason, who in refused.items():
        output.text(f"refused: {'; '.join(who)}: {reason}")


def _say_what_trained(output: Output, found: Comparison, train_steps: int) -> None:
    from fas.evaluation.control import TRAINED

    if not train_steps:
        output.text("No control: no weights were trained on data (--train-steps does, where a method has it).")
        return
    untrained = [row.plan.partition(" ")[0] for row in found.rows if row.refused or not row.figure("training_time")]
    for name in dict.fromkeys(name for name in untrained if name not in TRAINED):
        output.text(f"{name} was not trained: it is made without training.")


def _write(path: Path, rows: list[Measurement]) -> None:
    from fas.storage.directory import write_text

    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, rows_as_json(rows) + "\n")
