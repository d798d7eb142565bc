"""The whole benchmark: every size, every subject, every figure as a row as soon as it is known."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.suite import growth, memory, neuron_kernel
from benchmarks.suite import roofline as limits
from benchmarks.suite.absent import AbsentError
from benchmarks.suite.contender import Contender, Decoding
from benchmarks.suite.interleave import Prepare, Timing, interleaved
from benchmarks.suite.sizes import context, random_tokens
from benchmarks.suite.stock import Stock
from benchmarks.suite.subjects import Subject
from fas.errors import CalibrationError, FASError, SiteError
from fas.methods.fas import FAS
from fas.types import Measurement, Origin, Progress

Rows = Iterator[Measurement]
# To whom speeds are related, and how the ratio is called.
_COMPARED = {"dense": "speed", "reference": "speed_over_reference"}


@dataclass(frozen=True)
class Suite:
    """What to measure.

    Attributes:
        subjects: what is compared; the first is dense, to which ratios are taken.
        sizes: models by name.
        method: what spikes, and over how many time steps.
        prompt: tokens of the prompt.
        new: tokens decoded behind it.
        batches: sequences at once, one measurement of decoding for each; all else is measured with the first.
        rounds: samples of each figure.
        tokens: random tokens to calibrate on.
        patience: seconds after which a slow subject takes part no longer in one measurement.
        memory: measure peak memory.
        kernels: measure the neurons by themselves.
        growth: measure how cost grows.
        device: where to compute.
        seed: of weights and tokens.
        kernel_shape: tokens and neurons of the neurons by themselves.
        growth_axes: values along which growth is measured.
    """

    subjects: tuple[Subject, ...]
    sizes: tuple[str, ...]
    method: FAS
    prompt: int = 64
    new: int = 16
    batches: tuple[int, ...] = (1, 4)
    rounds: int = 5
    tokens: int = 256
    patience: float = 10.0
    memory: bool = True
    kernels: bool = True
    growth: bool = True
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seed: int = 0
    kernel_shape: tuple[int, int] = (4096, 3072)
    growth_axes: Mapping[str, tuple[int, ...]] | None = None

    def run(self, progress: Progress | None = None) -> Rows:
        """Measure everything, cheapest and most wanted first.

        Args:
            progress: told what runs, rounds done and rounds in all.

        Yields:
            Rows, each as soon as it is known. An absent subject has a row ``absent`` that says why.
        """
        progress = progress or (lambda what, done, total: None)
        progress("limits of the machine", 0, 1)
        roofline = limits.measure(self.device)
        yield self._row("bandwidth.read", roofline.read / 1e9, "GB/s", subject="roofline")
        yield self._row("bandwidth.copy", roofline.copy / 1e9, "GB/s", subject="roofline")
        yield self._row("matrix_product", roofline.flops / 1e9, "GFLOP/s", subject="roofline")
        for size in self.sizes:
            yield from self._size(size, roofline, progress)
        if self.kernels:
            yield from self._kernels(roofline, progress)
        if self.growth:
            yield from self._growth(progress)

    def _row(
        self, quantity: str, value: float, unit: str, *, origin: Origin = "measured", **conditions: Any
    ) -> Measurement:
        about = {"model": "none", "network": "none", "threads": torch.get_num_threads(), "device": str(self.device)}
        return Measurement(quantity, float(value), unit, origin, {**about, **conditions})

    def _size(self, size: str, roofline: limits.Roofline, progress: Progress) -> Rows:
        progress(f"{size}: making the model", 0, 1)
        stock = Stock(size, self.method, tokens=self.tokens, device=self.device, seed=self.seed)
        longest = context(stock.dense)
        if longest is not None and self.prompt + self.new > longest:
            raise FASError(
                f"{size} takes {longest} tokens, but prompt and new ones are {self.prompt} + {self.new}: ask for fewer"
            )
        row = partial(self._row, model=size)
        contenders: list[Contender] = []
        for subject in self.subjects:
            progress(f"{size}: {subject.name}, making ready (the first spiking one calibrates)", 0, 1)
            try:
                contender = subject.make(stock, subject.name)
                # Whether it runs at all shows here: kernels may lack an operation.
                with torch.inference_mode():
                    contender.prefill(random_tokens(stock.dense, 1, 2, seed=self.seed).to(self.device))()
                contenders.append(contender)
            except FASError as error:
                if subject is self.subjects[0] or isinstance(error, SiteError | CalibrationError):
                    raise
                yield row("absent", float("nan"), "1", subject=subject.name, reason=str(error))
        yield row("parameters", stock.dense.num_parameters(), "1", network="ann", subject="dense")
        yield from self._preparation(stock, row)
        for batch in self.batches:
            ids = random_tokens(stock.dense, batch, self.prompt, seed=self.seed + 2).to(self.device)
            row = partial(self._row, model=size, batch=batch, prompt=self.prompt)
            yield from self._limits(stock, ids, roofline, row)
            if batch == self.batches[0]:
                yield from self._answers(contenders, ids, row)
                yield from self._prefill(contenders, ids, row, _named(progress, f"{size}: prefill, batch {batch}"))
            yield from self._decode(contenders, ids, row, _named(progress, f"{size}: decode, batch {batch}"))
        if self.memory:
            yield from self._memory(stock, contenders, progress)

    def _preparation(self, stock: Stock, row: Callable[..., Measurement]) -> Rows:
        about = {"network": "snn", "coverage": self.method.coverage, "timesteps": self.method.timesteps}
        for quantity, seconds in stock.seconds.items():
            tokens = {"tokens": stock.calibration_tokens} if quantity == "calibration" else {}
            yield row(quantity, seconds, "s", subject="fas", **about, **tokens)
        for record in stock.records:
            for name, value in record.results.items():
                # The stage's own account of where its time goes.
                if "seconds" in name:
                    yield row(f"{record.stage}.{name}", value, "s", subject="fas", **about)

    def _answers(self, contenders: list[Contender], ids: torch.Tensor, row: Callable[..., Measurement]) -> Rows:
        """How far from dense each answer is: a program that is fast and wrong must show."""
        with torch.inference_mode():
            dense = contenders[0].prefill(ids)().logits.double()
            for contender in contenders[1:]:
                answer = contender.prefill(ids)().logits.double()
                error = float((answer - dense).norm() / dense.norm())
                yield row("logit_error", error, "1", subject=contender.name, **contender.about)

    def _limits(
        self, stock: Stock, ids: torch.Tensor, roofline: limits.Roofline, row: Callable[..., Measurement]
    ) -> Rows:
        linear, _ = stock.weight_bytes()
        rows, length = ids.shape
        for quantity, part, tokens in (("prefill", ids, rows * length), ("decode", ids[:, :1], rows)):
            with torch.inference_mode(), FlopCounterMode(display=False) as counter:
                stock.dense(input_ids=part, use_cache=False, logits_to_keep=1)
            for name, size in (("roofline", linear), ("roofline-int8", linear / 4)):
                seconds = roofline.seconds(counter.get_total_flops(), size)
                yield row(
                    quantity, tokens / seconds, "tokens/s", origin="estimated", subject=name,
                    flops=counter.get_total_flops(), bytes=size,
                )  # fmt: skip

    def _prefill(
        self, contenders: list[Contender], ids: torch.Tensor, row: Callable[..., Measurement], progress: Progress
    ) -> Rows:
        programs = {c.name: partial(c.prefill, ids) for c in contenders}
        tokens = dict.fromkeys(programs, ids.numel())
        yield from self._timed("prefill", contenders, programs, tokens, len(ids), row, progress)

    def _decode(
        self, contenders: list[Contender], ids: torch.Tensor, row: Callable[..., Measurement], progress: Progress
    ) -> Rows:
        programs: dict[str, Decoding] = {}
        for contender in contenders:
            progress(f"{contender.name}, reading the prompt", 0, 1)
            programs[contender.name] = contender.decode(ids, self.new)
        tokens = {name: decoding.tokens * len(ids) for name, decoding in programs.items()}
        row = partial(row, new=self.new)
        yield from self._timed("decode", contenders, programs, tokens, len(ids), row, progress)

    def _timed(
        self,
        quantity: str,
        contenders: list[Contender],
        programs: Mapping[str, Prepare],
        tokens: Mapping[str, int],
        batch: int,
        row: Callable[..., Measurement],
        progress: Progress,
    ) -> Rows:
        timings = interleaved(
            programs,
            rounds=self.rounds,
            patience=self.patience,
            progress=progress,
            synchronise=limits.synchroniser(self.device),
        )
        # Ratios are those of tokens per second: subjects need not have decoded equally many.
        paces = {name: _per_token(timing, tokens[name]) for name, timing in timings.items()}
        for contender in contenders:
            per_token = paces[contender.name]
            about = {
                "subject": contender.name, **contender.about, "cached": contender.cached,
                "rounds": len(per_token.seconds), "calls": per_token.calls,
            }  # fmt: skip
            low, high = per_token.interquartile
            yield row(quantity, 1 / per_token.median, "tokens/s", interquartile=[1 / high, 1 / low], **about)
            for other, name in _COMPARED.items():
                if other in paces:
                    speed, low, high = per_token.speed(paces[other])
                    yield row(f"{quantity}.{name}", speed, f"× {other}", interquartile=[low, high], **about)
            if quantity == "decode":
                # All sequences of a batch advance together.
                yield row("latency", 1000 * per_token.median * batch, "ms/token", **about)

    def _memory(self, stock: Stock, contenders: list[Contender], progress: Progress) -> Rows:
        batch = self.batches[0]
        row = partial(self._row, model=stock.size, batch=batch, prompt=self.prompt, new=self.new)
        dense: memory.Peak | None = None
        with tempfile.TemporaryDirectory() as folder:
            parameters = Path(folder) / "parameters.safetensors"
            stock.save(parameters)
            for done, contender in enumerate(contenders):
                progress(f"{stock.size}: memory of {contender.name}", done, len(contenders))
                job = memory.Job(
                    stock.size, contender.name, asdict(self.method), str(parameters), str(self.device),
                    torch.get_num_threads(), batch, self.prompt, self.new, self.seed,
                )  # fmt: skip
                about = {"subject": contender.name, **contender.about}
                try:
                    peak = memory.peak(job)
                except AbsentError as error:
                    yield row("absent", float("nan"), "1", reason=f"memory: {error}", **about)
                    continue
                for quantity, value in asdict(peak).items():
                    yield row(f"memory.{quantity}", value / 2**20, "MiB", **about)
                # The first is the dense model.
                dense = peak if done == 0 else dense
                if dense is not None:
                    yield row("memory.ratio", peak.total / dense.total, "× dense", **about)

    def _kernels(self, roofline: limits.Roofline, progress: Progress) -> Rows:
        rows, channels = self.kernel_shape
        steps = self.method.timesteps
        found = neuron_kernel.measure(
            roofline, timesteps=steps, rows=rows, channels=channels, rounds=self.rounds, patience=self.patience,
            device=self.device, progress=_named(progress, "neurons"),
        )  # fmt: skip
        row = partial(self._row, network="snn", neuron="signed_if", shape=[steps, rows, channels], timesteps=steps)
        loop = found.timings[neuron_kernel.LOOP]
        for name, timing in found.timings.items():
            about: dict[str, Any] = {"subject": name, "rounds": len(timing.seconds), "calls": timing.calls}
            yield row(
                "neuron", 1000 * timing.median, "ms", interquartile=[1000 * s for s in timing.interquartile], **about
            )
            speed, low, high = timing.speed(loop)
            yield row("neuron.speed", speed, "× loop", interquartile=[low, high], **about)
            yield row("neuron.limit", 1000 * found.limits[name], "ms", origin="estimated", **about)
            yield row("neuron.above_limit", timing.median / found.limits[name], "× limit", **about)
        for name, reason in found.absent.items():
            yield row("absent", float("nan"), "1", subject=name, reason=reason)

    def _growth(self, progress: Progress) -> Rows:
        axes = growth.AXES if self.growth_axes is None else dict(self.growth_axes)
        series: dict[tuple[str, str], list[tuple[int, float]]] = {}
        points = growth.measure(
            self.subjects, axes=axes, rounds=max(1, min(3, self.rounds)), device=self.device,
            progress=_named(progress, "growth"),
        )  # fmt: skip
        for axis, point, timings in points:
            for name, timing in timings.items():
                low, high = timing.interquartile
                yield self._row(
                    "growth", 1000 * timing.median, "ms", model="gpt2 shape", subject=name, axis=axis,
                    interquartile=[1000 * low, 1000 * high], rounds=len(timing.seconds), **asdict(point),
                )  # fmt: skip
                series.setdefault((axis, name), []).append((getattr(point, axis), timing.median))
        for (axis, name), found in series.items():
            if len(found) > 1:
                slope = growth.exponent(*zip(*found, strict=True))
                yield self._row("growth.exponent", slope, "1", model="gpt2 shape", subject=name, axis=axis)


def _per_token(timing: Timing, tokens: int) -> Timing:
    return replace(timing, seconds=tuple(seconds / tokens for seconds in timing.seconds))


def _named(progress: Progress, prefix: str) -> Progress:
    return lambda what, done, total: progress(f"{prefix}: {what}", done, total)
