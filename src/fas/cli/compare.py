"""``fas compare``: one model by several methods, codes and numbers of time steps, in one table."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer

from fas.cli.program.options import (
    BatchSize,
    Data,
    Device,
    Json,
    Model,
    PlainNetwork,
    Seed,
    TestData,
    TestTokens,
    Tokens,
    Window,
    whole_numbers,
    words,
)
from fas.cli.program.output import Output
from fas.evaluation.compare import Data as Seen
from fas.evaluation.compare import Plan, Row, compare_plans


def compare(
    context: typer.Context,
    model: Model,
    methods: Annotated[
        str,
        typer.Option(
            help="Recipes, files of fas.methods, separated by commas, or `all`; own fields behind colons: "
            "`rate_norm:fit_epochs=3,threshold_balancing:rule=percentile`."
        ),
    ] = "fas",
    timesteps: Annotated[str, typer.Option(help="T, one or several.")] = "4,8",
    coverage: Annotated[str, typer.Option(help="mlp, linear, full: one or several.")] = "linear",
    neuron: Annotated[
        str | None, typer.Option(help="Neurons for the methods that let one choose, one or several.")
    ] = None,
    data: Data = None,
    test_data: TestData = None,
    network: PlainNetwork = None,
    accounting: Annotated[
        str, typer.Option(help="Of the energy column, with 45nm prices: paper, compute, memory, or none.")
    ] = "compute",
    train_steps: Annotated[
        int, typer.Option(help="Stage 1 for methods that have it, so many steps, and the control.", min=0)
    ] = 0,
    plot: Annotated[
        Path | None, typer.Option(help="Draw score against spikes per neuron: a file ending in svg, png or pdf.")
    ] = None,
    tokens: Tokens = 16384,
    test_tokens: TestTokens = 16384,
    images: Annotated[int, typer.Option(help="Images to calibrate on, of every class as many.", min=1)] = 256,
    test_images: Annotated[int, typer.Option(help="Images to measure on, of every class as many.", min=1)] = 1000,
    window: Window = None,
    batch_size: BatchSize = 8,
    device: Device = "cpu",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Convert a dense model in every combination, measure each, and show them side by side.

    Compare systems by levels and spikes per neuron, not by T alone. A combination that a method refuses has its
    reason below the table. Where a quantised network has levels of its own, they are as many as T.

    Example: `fas compare embedded --methods fas --neuron signed_if,phase --timesteps 2,4,8 --plot build/compare.svg`
    """
    with Output.opened(context, as_json) as output:
        from fas.errors import MissingExtraError
        from fas.saving import check_writable

        if accounting not in ("paper", "compute", "memory", "none"):
            raise ValueError(f"--accounting is {accounting!r}; choose one of paper, compute, memory, none")
        if plot is not None:
            check_writable(plot)
            if find_spec("matplotlib") is None:
                raise MissingExtraError("--plot needs matplotlib: pip install 'fas[plot]'")
        plans = list(_plans(methods, whole_numbers(timesteps, "--timesteps"), words(coverage), words(neuron or "")))
        seen = Seen(data, test_data, tokens, test_tokens, window, batch_size, images, test_images, seed)
        rows = compare_plans(
            output, model, plans, seen, device=device, title="Comparison on", network=network,
            accounting=None if accounting == "none" else accounting, train_steps=train_steps,
        )  # fmt: skip
        if plot is not None:
            _draw(rows, plot)
            output.remark(f"drawn to {plot}")


def _plans(methods: str, steps: list[int], coverages: list[str], neurons: list[str]) -> Iterator[Plan]:
    from dataclasses import fields

    from fas import registry
    from fas.config import build_method

    for text in registry.available("methods") if methods.strip() == "all" else words(methods):
        name, *settings = text.split(":")
        known = {field.name for field in fields(registry.load("methods", name))}
        given = dict(_setting(name, setting, known) for setting in settings)
        choices: dict[str, list[Any]] = {"coverage": coverages, "neuron": neurons, "timesteps": steps}
        axes = {
            option: values for option, values in choices.items() if option in known and values and option not in given
        }
        for values in product(*axes.values()):
            options = {**given, **dict(zip(axes, values, strict=True))}
            title = " ".join([name, *(s for s in settings if not s.startswith(("coverage", "neuron")))])
            try:
                method: Any = build_method(name, options)
                if "levels" not in given and method.levels is not None:
                    method = method.with_options(levels=method.timesteps)
                yield Plan(title, method, timesteps=method.timesteps)
            except ValueError as error:
                yield Plan(title, None, refused=str(error), timesteps=options.get("timesteps"))


def _setting(method: str, text: str, known: set[str]) -> tuple[str, Any]:
    """Return a field and its value from ``name=value``."""
    name, equals, value = text.partition("=")
    if not equals or name not in known:
        raise ValueError(f"--methods says {method}:{text}; expected FIELD=VALUE with one of {', '.join(sorted(known))}")
    try:
        return name, ast.literal_eval({"true": "True", "false": "False"}.get(value, value))
    except (ValueError, SyntaxError):
        return name, value


def _draw(rows: list[Row], path: Path) -> None:
    """Draw the chief score against spikes per neuron, a line for each kind of network."""
    from matplotlib.figure import Figure

    from fas.storage.directory import whole_file

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    lines: dict[str, list[Row]] = {}
    for row in rows:
        if row.relation is not None and row.spikes is not None:
            lines.setdefault(row.kind, []).append(row)
    for kind, members in lines.items():
        points = sorted((row.spikes or 0.0, row.relation or 0.0, row.timesteps) for row in members)
        axes.plot([x for x, _, _ in points], [y for _, y, _ in points], marker="o", label=kind)
        for x, y, steps in points:
            axes.annotate(f"T={steps}", (x, y), textcoords="offset points", xytext=(4, 4), fontsize=7)
    shown = next(row for row in rows if row.refused is None)
    axes.set_xlabel("spikes per neuron over the whole window")
    axes.set_ylabel(shown.relation_title)
    axes.axhline(1.0 if shown.score == "perplexity" else 0.0, color="grey", linewidth=0.8, linestyle="--")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as beside:
        figure.savefig(beside)
