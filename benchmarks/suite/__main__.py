"""Speed and memory of the spiking network beside the dense model and other simulators: the program."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from typer.core import TyperCommand

from benchmarks.suite import tables
from fas.cli.program.failures import failures_as_messages
from fas.cli.program.options import Device, Json, Seed, Tokens, whole_numbers, words
from fas.cli.program.output import Output
from fas.cli.program.session import Session
from fas.errors import FASError
from fas.types import Coverage, Progress

_PROGRAM = "python -m benchmarks.suite"
_SIZES = "embedded,gpt2-small"
_SUBJECTS = (
    "dense,dense-bf16,dense-int8,collapsed,collapsed-int8,stepped,online,online-instant,reference,spikingjelly-if"
)


class _Command(TyperCommand):
    """Keeps the arguments as they were given: every figure states the command that made it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        command = shlex.join([*_PROGRAM.split(), *args])
        rest = super().parse_args(ctx, args)
        ctx.obj = Session.of(command, **{name: ctx.params[name] for name in ("debug", "verbose", "quiet")})
        return rest


app = typer.Typer(
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command(cls=_Command)
@failures_as_messages
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
    neuron: Annotated[str, typer.Option(help="What spikes; digit codes have no online subjects.")] = "signed_if",
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
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks in place of one-line errors.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what the library logs.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no remarks on stderr.")] = False,
) -> None:
    """Measure tokens per second, latency, memory and calibration, all subjects in turn in one process.

    Ratios are medians over rounds in which the subjects run one after the other. Ctrl-C ends the run and keeps
    what has been measured.

    Example: `python -m benchmarks.suite --sizes gpt2-small --subjects collapsed,stepped --out build/bench`
    """
    batches = tuple(whole_numbers(batch, "--batch"))
    if min(batches) < 1:
        raise typer.BadParameter(f"{batch!r} has a batch below 1", param_hint="--batch")
    # transformers reads what the session has set when it is imported.
    from benchmarks.suite import machine, results
    from benchmarks.suite.plots import draw
    from benchmarks.suite.subjects import chosen
    from benchmarks.suite.suite import Suite
    from fas.methods.fas import FAS
    from fas.saving import check_writable

    interrupted = False
    with Output.opened(context, as_json) as output:
        if out is not None:
            check_writable(out / "bench.json")
        if threads is not None:
            torch.set_num_threads(threads)
        plan = Suite(
            tuple(chosen(words(subjects))), tuple(words(sizes)),
            FAS(timesteps=timesteps, coverage=coverage, neuron=neuron),
            prompt=prompt, new=new_tokens, batches=batches, rounds=repeats, tokens=tokens, patience=patience,
            memory=memory, kernels=kernels, growth=growth, device=_device(device), seed=seed,
        )  # fmt: skip
        about = machine.describe(plan.device)
        output.remark(f"{about['device']}, {about['threads']} threads, load {about['load']}")
        made_on = {"processor": about["device"], "commit": about["commit"]}
        file = None if out is None else out / "bench.json"
        try:
            with _bar(output, quiet=quiet) as progress:
                for row in plan.run(progress):
                    output.add(replace(row, conditions={**row.conditions, **made_on}))
                    if file is not None:
                        now = {**about, "load_at_end": machine.load()}
                        results.write(file, now, output.measurements)
        except KeyboardInterrupt:
            interrupted = True
            output.remark(f"interrupted: {len(output.measurements)} figures were measured")
        tables.show(output)
        if file is not None and file.is_file():
            drawn = draw(file)
            output.remark(f"wrote {file} and {len(drawn)} plots beside it")
    if interrupted:
        raise typer.Exit(130)


def _device(name: str) -> torch.device:
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
    columns = (BarColumn(20), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=None)
        yield lambda what, done, total: bars.update(task, description=what, completed=done, total=total)


if __name__ == "__main__":
    app(prog_name=_PROGRAM)
