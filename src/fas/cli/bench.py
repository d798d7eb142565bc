"""``fas bench``: speed and memory of the spiking network beside the dense model and other simulators."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from fas.cli.program.options import Device, Json, Seed, Tokens, whole_numbers, words
from fas.cli.program.output import Output
from fas.types import Coverage, Measurement, Progress

_SIZES = "embedded,gpt2-small"
_SUBJECTS = (
    "dense,dense-bf16,dense-int8,collapsed,collapsed-int8,stepped,online,online-instant,reference,spikingjelly-if"
)


def bench(
    context: typer.Context,
    sizes: Annotated[
        str,
        typer.Option(help="Models: embedded, gpt2-small, qwen2-small, opt-1.3b (5 GB), or directories of dense ones."),
    ] = _SIZES,
    subjects: Annotated[
        str, typer.Option(help="What to compare; collapsed-compiled too, and spikingjelly-qwen2 for Qwen2 models.")
    ] = _SUBJECTS,
    timesteps: Annotated[int, typer.Option(help="T.", min=1)] = 8,
    coverage: Annotated[Coverage, typer.Option(help="Which sites spike.")] = "linear",
    prompt: Annotated[int, typer.Option(help="Tokens of the prompt.", min=2)] = 64,
    new_tokens: Annotated[int, typer.Option(help="Tokens decoded behind it.", min=1)] = 8,
    batch: Annotated[
        str, typer.Option(help="Sequences at once; several for decoding, the first for all else.")
    ] = "1,4",
    repeats: Annotated[int, typer.Option(help="Rounds: in each, every subject runs once.", min=1)] = 5,
    patience: Annotated[
        float, typer.Option(help="Seconds after which a slow subject leaves one measurement, with 2 rounds or more.")
    ] = 4.0,
    threads: Annotated[int | None, typer.Option(help="Threads of torch; its own choice if not given.", min=1)] = None,
    tokens: Tokens = 256,
    memory: Annotated[bool, typer.Option(help="Peak memory, each subject in a process of its own.")] = True,
    kernels: Annotated[bool, typer.Option(help="The neurons by themselves, on [T, 4096, 3072].")] = True,
    growth: Annotated[bool, typer.Option(help="Cost by T, sequence length, width and depth.")] = True,
    out: Annotated[
        Path | None, typer.Option(help="Directory for bench.json, written as figures arrive, and plots of it.")
    ] = None,
    device: Device = "cpu",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure tokens per second, latency, memory and calibration, all subjects in turn in one process.

    Ratios are medians over rounds in which the subjects run one after the other. Ctrl-C ends the run and keeps
    what has been measured.

    Example: `fas bench --sizes gpt2-small --subjects collapsed,stepped --out build/bench`
    """
    batches = tuple(whole_numbers(batch, "--batch"))
    if min(batches) < 1:
        raise typer.BadParameter(f"{batch!r} has a batch below 1", param_hint="--batch")
    interrupted = False
    with Output.opened(context, as_json) as output:
        import torch

        from fas.bench import machine, results
        from fas.bench.subjects import chosen
        from fas.bench.suite import Suite
        from fas.methods.fas import FAS
        from fas.saving import check_writable

        if out is not None:
            check_writable(out / "bench.json")
        if threads is not None:
            torch.set_num_threads(threads)
        plan = Suite(
            tuple(chosen(words(subjects))), tuple(words(sizes)), FAS(timesteps=timesteps, coverage=coverage),
            prompt=prompt, new=new_tokens, batches=batches, rounds=repeats, tokens=tokens, patience=patience,
            memory=memory, kernels=kernels, growth=growth, device=_device(device), seed=seed,
        )  # fmt: skip
        about = machine.describe(plan.device)
        output.remark(f"{about['device']}, {about['threads']} threads, load {about['load']}")
        made_on = {"processor": about["device"], "commit": about["commit"]}
        file = None if out is None else out / "bench.json"
        try:
            with _bar(output, quiet=context.obj.quiet) as progress:
                for row in plan.run(progress):
                    stated = output.measure(row.quantity, row.value, row.unit, **row.conditions, **made_on)
                    output.measurements[-1] = replace(stated, origin=row.origin)
                    if file is not None:
                        now = {**about, "load_at_end": machine.load()}
                        results.write(file, now, output.measurements)
        except KeyboardInterrupt:
            interrupted = True
            output.remark(f"interrupted: {len(output.measurements)} figures were measured")
        _tables(output)
        if file is not None and file.is_file():
            from fas.bench.plots import draw

            drawn = draw(file)
            output.remark(f"wrote {file} and {len(drawn)} plots beside it")
    if interrupted:
        raise typer.Exit(130)


def _device(name: str) -> Any:
    import torch

    from fas.errors import FASError

    # torch reports a device that is not there as RuntimeError or AssertionError, an unknown name too.
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise FASError(f"device {name!r} cannot be used: {reason}") from error


@contextmanager
def _bar(output: Output, *, quiet: bool) -> Iterator[Progress]:
    """Show on a terminal what is being measured."""
    if output.json or quiet or not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(20), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=None)
        yield lambda what, done, total: bars.update(task, description=what, completed=done, total=total)


def _tables(output: Output) -> None:
    rows = output.measurements
    _roofline(output, rows)
    for model in _distinct(rows, "model", "prefill"):
        for batch in dict.fromkeys(_distinct(rows, "batch", "prefill") + _distinct(rows, "batch", "decode")):
            _speeds(output, [r for r in rows if r.conditions["model"] == model], model, batch)
    _memory(output, rows)
    _neurons(output, rows)
    _growth(output, rows)
    absent = [[r.conditions["model"], r.conditions["subject"], r.conditions["reason"]] for r in _of(rows, "absent")]
    if absent:
        output.table("Not measured", ["model", "subject", "reason"], absent)


def _roofline(output: Output, rows: Sequence[Measurement]) -> None:
    quantities = ("bandwidth.read", "bandwidth.copy", "matrix_product", "conversion", "calibration")
    found = [[r.conditions["model"], r.quantity, r.value, r.unit] for r in rows if r.quantity in quantities]
    if found:
        output.table("Machine, conversion, calibration", ["model", "quantity", "value", "unit"], found)


def _speeds(output: Output, rows: Sequence[Measurement], model: str, batch: int) -> None:
    of_batch = [row for row in rows if row.conditions.get("batch") == batch]
    lines = []
    for subject in dict.fromkeys(_distinct(of_batch, "subject", "prefill") + _distinct(of_batch, "subject", "decode")):
        own = {row.quantity: row for row in of_batch if row.conditions["subject"] == subject}
        cells = [(_ratio if "speed" in name else _value)(own, name) for name in _SPEED_COLUMNS]
        lines.append([subject, *cells])
    titles = ["subject"]
    for kind in ("prefill", "decode"):
        titles += [f"{kind} tok/s", "× dense", "× reference"]
    output.table(f"{model}, batch {batch} (ratios: median, quartiles)", [*titles, "ms/token", "logit error"], lines)


_SPEED_COLUMNS = (
    "prefill", "prefill.speed", "prefill.speed_over_reference",
    "decode", "decode.speed", "decode.speed_over_reference", "latency", "logit_error",
)  # fmt: skip


def _memory(output: Output, rows: Sequence[Measurement]) -> None:
    lines = []
    for model in _distinct(rows, "model", "memory.total"):
        of_model = [row for row in rows if row.conditions["model"] == model and row.quantity.startswith("memory")]
        for subject in _distinct(of_model, "subject", "memory.total"):
            own = {row.quantity: row for row in of_model if row.conditions["subject"] == subject}
            batch = own["memory.total"].conditions["batch"]
            cells = [_value(own, f"memory.{name}") for name in ("above_model", "total", "ratio")]
            lines.append([model, batch, subject, *cells])
    if lines:
        titles = ["model", "batch", "subject", "MiB above model", "MiB in all", "× dense"]
        output.table("Peak memory", titles, lines)


def _neurons(output: Output, rows: Sequence[Measurement]) -> None:
    lines = []
    for subject in _distinct(rows, "subject", "neuron"):
        own = {r.quantity: r for r in rows if r.quantity.startswith("neuron") and r.conditions["subject"] == subject}
        shape = "×".join(map(str, own["neuron"].conditions["shape"]))
        ratio = _ratio(own, "neuron.speed")
        lines.append(
            [subject, shape, *(_value(own, q) for q in ("neuron", "neuron.limit", "neuron.above_limit")), ratio]
        )
    if lines:
        titles = ["neurons", "T × tokens × neurons", "ms", "bandwidth limit, ms", "× limit", "× loop"]
        output.table("Neurons by themselves", titles, lines)


def _growth(output: Output, rows: Sequence[Measurement]) -> None:
    found = _of(rows, "growth")
    for axis in _distinct(found, "axis", "growth"):
        points = [row for row in found if row.conditions["axis"] == axis]
        values = _distinct([row for row in points], axis, "growth")
        slopes = {
            r.conditions["subject"]: r.value for r in _of(rows, "growth.exponent") if r.conditions["axis"] == axis
        }
        lines = []
        for subject in _distinct(points, "subject", "growth"):
            own = {row.conditions[axis]: row.value for row in points if row.conditions["subject"] == subject}
            lines.append([subject, *(own.get(value) for value in values), slopes.get(subject)])
        output.table(f"Growth with {axis}, ms per pass", ["subject", *map(str, values), "exponent"], lines)


def _of(rows: Sequence[Measurement], quantity: str) -> list[Measurement]:
    return [row for row in rows if row.quantity == quantity]


def _distinct(rows: Sequence[Measurement], condition: str, quantity: str) -> list[Any]:
    return list(dict.fromkeys(row.conditions.get(condition) for row in _of(rows, quantity)))


def _value(own: dict[str, Measurement], quantity: str) -> float | None:
    return own[quantity].value if quantity in own else None


def _ratio(own: dict[str, Measurement], quantity: str) -> str | None:
    if quantity not in own:
        return None
    low, high = own[quantity].conditions["interquartile"]
    return f"{own[quantity].value:.2f} [{low:.2f}, {high:.2f}]"
