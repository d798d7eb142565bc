"""Conversion methods on a trained convolutional network, in one table: accuracy over T, spikes, cost of training.

    python -m benchmarks.cnn build/models/cnn-vgg --data DIR --timesteps 1 2 4 8 16 32 64
    python -m benchmarks.cnn build/models/cnn-resnet --data DIR

The directory is one that `tools/train_cnn.py` made, `--data` that command's. The photographs that trained the network
calibrate and train; the first `--test-per-class` of every class of the test set measure. Networks that a method trains
are kept inside the directory and read back the next time. Writes `comparison.json` beside the weights after every row
and prints a Markdown table at the end. `--only` measures some of the rows and keeps the others of that file.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor

import fas
from benchmarks.by_step import accuracy_by_step
from fas.data.images import AugmentedBatches, image_batches
from fas.evaluation.classify import classify_images
from fas.methods.fast_snn import FastSNN
from fas.methods.las import LAS
from fas.methods.qcfs_only import QCFSOnly
from fas.methods.rate_norm import RateNorm
from fas.methods.threshold_balancing import ThresholdBalancing
from fas.runtime.plain import load_module
from fas.stages.fast_snn import TuneLayers
from fas.stages.reduce_bits import ReduceBits
from fas.stages.set_potential import SetPotential
from fas.stages.train_rates import TrainRates
from fas.surgery.probe import evaluating
from fas.training.descent import cross_entropy, dense_parameters, descend
from fas.training.rates import rates
from fas.types import Method

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
from train_cnn import load_network, read_part

Batch = dict[str, Tensor]
# Bits of the networks that Fast-SNN trains, one from the other, and the fine-tuning of their layers.
BITS = (3, 2)
TRAINING_RATE = 2e-3
TUNING: dict[str, Any] = {"epochs": 1, "learning_rate": 1e-2}
TUNING_IMAGES = 1000
# λ and passes of rate norm's second stage, and the training behind it: chosen on the photographs that were held out.
RATES: dict[str, Any] = {"omega_weight": 0.05, "fit_epochs": 20}
RATES_TRAINED: dict[str, Any] = {"omega_weight": 0.1, "fit_epochs": 10}
RATES_TRAINING: dict[str, Any] = {"epochs": 3, "learning_rate": 5e-3}


class ChannelsLast(Sequence[Batch]):
    """Batches in the memory order that the populations read without a copy."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._batches)

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> list[Batch]: ...
    def __getitem__(self, index: int | slice) -> Batch | list[Batch]:
        """Return one batch, or several."""
        if isinstance(index, slice):
            return [_channels_last(batch) for batch in self._batches[index]]
        return _channels_last(self._batches[index])


def _channels_last(batch: Batch) -> Batch:
    return {**batch, "x": batch["x"].contiguous(memory_format=torch.channels_last)}


class Comparison:
    """One trained network, its data and the rows measured so far."""

    def __init__(self, a: argparse.Namespace) -> None:
        self.steps: list[int] = a.timesteps
        self.directory: Path = a.model
        self.file = a.model / "comparison.json"
        self.dense, self.about = load_network(a.model)
        self.dense.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        training = read_part(a.data, "train", self.about["per_class"])
        self.training = ChannelsLast(image_batches(training, 100, seed=0))
        some = self.training[: a.training_images // 100]
        self.augmented = ChannelsLast(AugmentedBatches(some, seed=1))
        self.training_augmented = ChannelsLast(AugmentedBatches(self.training, seed=1))
        self.calibration = [{"x": batch["x"]} for batch in self.training[: a.calibration // 100]]
        # Shuffled: spikes are counted on the first batches alone.
        test = image_batches(read_part(a.data, "test", a.test_per_class), 25, seed=0)
        self.test = ChannelsLast(test)[:]
        self.counted = self.test[: a.spike_images // 25]
        if not a.only:
            self.file.unlink(missing_ok=True)
        # By the number of test images: parts of the table may be measured on more of them.
        self.dense_accuracy: dict[str, float] = dict(self.read("dense"))
        self.accuracy = classify_images(self.dense, self.test)["accuracy"]
        print(f"dense {100 * self.accuracy:.1f} % of {_number(self.test)}", flush=True)

    def convert(self, method: Method) -> Any:
        """Return a converted copy of the network, calibrated."""
        probe = {"x": self.calibration[0]["x"][:1]}
        return fas.convert(copy.deepcopy(self.dense), method, probe=probe, calibration=self.calibration)

    def trained(self, name: str, method: Method, train: Callable[[Any], list[Any]]) -> Any:
        """Return a converted network that a method has trained: from the directory, else trained now and kept."""
        place = self.directory / name
        if place.is_dir():
            return load_module(copy.deepcopy(self.dense), place)
        print(f"training {name}", flush=True)
        model = self.convert(method)
        model.records.extend(train(model))
        model.save_pretrained(place)
        return model

    def row(self, name: str, model: Any, timesteps: int, *, curve: bool = False) -> None:
        """Measure a network at T in both schedules, and count its spikes; a curve has every T up to that at once."""
        begun = time.perf_counter()
        model.timesteps = timesteps
        schedules = ("layerwise",) if isinstance(model.fas_config.recipe, LAS) else ("online", "layerwise")
        steps = [t for t in self.steps if t <= timesteps] if curve else [timesteps]
        found: dict[int, dict[str, float]] = {t: {} for t in steps}
        for schedule in schedules:
            model.schedule = schedule
            if schedule == "online":
                right = accuracy_by_step(model, self.test)
                for t in steps:
                    found[t][schedule] = right[t - 1]
            for t in steps:
                model.timesteps = t
                if schedule == "layerwise":
                    found[t][schedule] = classify_images(model, self.test)["accuracy"]
                if t <= 16:
                    with fas.record(model) as spikes:
                        classify_images(model, self.counted)
                    found[t][f"spikes_{schedule}"] = spikes.spikes_per_neuron
            model.timesteps = timesteps
        if model.fas_config.recipe.__class__ is FastSNN:
            model.network = "quantised"
            found[timesteps]["quantised"] = classify_images(model, self.test)["accuracy"]
            model.network = "snn"
        seconds = {record.stage: record.results.get("seconds", 0.0) for record in model.records}
        about = {"test_images": _number(self.test), "spike_images": _number(self.counted), "stage_s": seconds}
        rows = [{"method": name, "timesteps": t, **found[t], **about} for t in steps]
        for t in steps:
            print(name, t, {k: round(v, 4) for k, v in found[t].items()}, flush=True)
        print(f"  {time.perf_counter() - begun:.0f} s", flush=True)
        self.write(rows)

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Put rows in the place of those that the file has of the same methods and steps."""
        new = {(row["method"], row["timesteps"]) for row in rows}
        kept = [row for row in self.read() if (row["method"], row["timesteps"]) not in new]
        described = {
            "network": self.about,
            "dense": {**self.dense_accuracy, str(_number(self.test)): self.accuracy},
            "versions": {"fas": fas.__version__, "torch": torch.__version__},
            "rows": [*kept, *rows],
        }
        self.file.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")

    def read(self, key: str = "rows") -> Any:
        """Return what the file has under a key, an empty list without a file."""
        return json.loads(self.file.read_text(encoding="utf-8"))[key] if self.file.is_file() else []

    def threshold_balancing(self) -> None:
        """Thresholds do not depend on T: the answers of every step of one run are the curve."""
        rules: tuple[Literal["maximum", "percentile"], ...] = ("maximum", "percentile")
        for rule in rules:
            method = ThresholdBalancing(timesteps=max(self.steps), rule=rule)
            self.row(f"threshold_balancing, {rule}", self.convert(method), max(self.steps), curve=True)

    def threshold_balancing_rounding(self) -> None:
        """Neurons that start at half their threshold."""
        method = ThresholdBalancing(timesteps=max(self.steps), rule="percentile", potential=0.5)
        self.row("threshold_balancing, percentile, v₀ = θ/2", self.convert(method), max(self.steps), curve=True)

    def threshold_balancing_control(self) -> None:
        """Dense weights trained as those of ``rate_norm_trained``: what the training alone is worth."""
        method = ThresholdBalancing(timesteps=max(self.steps), rule="percentile")

        def train(made: Any) -> list[Any]:
            with evaluating(made), made.simulation.using(network="ann"):
                rate, decay = RATES_TRAINING["learning_rate"], TrainRates().weight_decay
                descend(
                    torch.optim.SGD(dense_parameters(made), rate, 0.9, weight_decay=decay), self.training_augmented,
                    lambda batch: cross_entropy(made, batch), label="weights", epochs=RATES_TRAINING["epochs"],
                )  # fmt: skip
            return [stage.run(made, self.calibration) for stage in method.stages()]

        model = self.trained("threshold_balancing-control", method, train)
        model.network = "ann"
        print(f"dense after training {100 * classify_images(model, self.test)['accuracy']:.1f} %", flush=True)
        model.network = "snn"
        self.row("threshold_balancing, percentile, trained weights", model, max(self.steps), curve=True)

    def rate_norm(self) -> None:
        """Stage 2 on the weights of the dense network, as the others: nothing but thresholds is fitted."""
        method = RateNorm(timesteps=max(self.steps), **RATES)
        self.row("rate_norm", self.convert(method), max(self.steps), curve=True)

    def rate_norm_trained(self) -> None:
        """Weights trained at the thresholds of stage 2, with neurons that start at rest and at half a threshold."""
        method = RateNorm(timesteps=max(self.steps), **RATES_TRAINED)

        def train(made: Any) -> list[Any]:
            return [TrainRates(scale=None, **RATES_TRAINING).run(made, self.training_augmented)]

        model = self.trained("rate_norm-trained", method, train)
        with evaluating(model), rates(model, lambda population: population.threshold):
            print(f"network of rates {100 * classify_images(model, self.test)['accuracy']:.1f} %", flush=True)
        self.row("rate_norm, trained", model, max(self.steps), curve=True)
        SetPotential(0.5).run(model, [])
        self.row("rate_norm, trained, v₀ = θ/2", model, max(self.steps), curve=True)

    def by_steps(self, name: str, make: Callable[[int], Method]) -> None:
        """Measure a method that is calibrated for each T."""
        for timesteps in self.steps:
            if timesteps <= 16:
                self.row(name, self.convert(make(timesteps)), timesteps)

    def qcfs_only(self) -> None:
        """Thresholds of the smallest squared error for L = T; nothing trained."""
        self.by_steps("qcfs_only", lambda t: QCFSOnly(timesteps=t, levels=t))

    def qcfs_trained(self) -> None:
        """The quantised network of 3 bits that Fast-SNN trains, run by neurons that take nothing back."""
        place = self.directory / "fast_snn-3-bits"
        if not place.is_dir():
            raise SystemExit(f"{place} is missing: measure fast_snn first, which trains it")
        weights = load_module(copy.deepcopy(self.dense), place).state_dict()

        def make(timesteps: int) -> Any:
            model = self.convert(QCFSOnly(timesteps=timesteps, levels=7))
            model.load_state_dict(weights)
            return model

        for timesteps in self.steps:
            if timesteps <= 16:
                self.row("qcfs_only, trained with L = 7", make(timesteps), timesteps)

    def fast_snn_untrained(self) -> None:
        """Signed neurons on thresholds of the smallest squared error for L = T."""
        self.by_steps("fast_snn, not trained", lambda t: FastSNN(timesteps=t, levels=t, tune_epochs=0))

    def fast_snn(self) -> None:
        """Bits reduced in training, one after the other; each network before and after its layers are tuned."""
        model: Any = None
        for bits in BITS:
            before = model

            def train(made: Any, bits: int = bits, before: Any = before) -> list[Any]:
                if before is not None:
                    made.load_state_dict(before.state_dict())
                return [ReduceBits(bits=(bits,), learning_rate=TRAINING_RATE).run(made, self.augmented)]

            model = self.trained(f"fast_snn-{bits}-bits", FastSNN(bits=bits, tune_epochs=0), train)
            self.row("fast_snn, trained", model, 2**bits - 1)

            def tune(made: Any, before: Any = model) -> list[Any]:
                made.load_state_dict(before.state_dict())
                images = self.training[: TUNING_IMAGES // 100]
                return [TuneLayers(**TUNING).run(made, [{"x": batch["x"]} for batch in images])]

            tuned = self.trained(f"fast_snn-{bits}-bits-tuned", FastSNN(bits=bits, tune_epochs=0), tune)
            self.row("fast_snn, trained and tuned", tuned, 2**bits - 1)

    def fas(self) -> None:
        """Calibration per layer and per channel."""
        self.by_steps("fas signed_if", lambda t: fas.FAS(timesteps=t, neuron="signed_if"))
        self.by_steps("fas clipped_count", lambda t: fas.FAS(timesteps=t, neuron="clipped_count"))

    def las(self) -> None:
        """Its neurons at the inputs of layers: there is no attention, and digits need the layerwise schedule."""
        self.by_steps("las", lambda t: LAS(timesteps=t, coverage="linear", gated=False))


ROWS = (
    "threshold_balancing", "threshold_balancing_rounding", "threshold_balancing_control", "rate_norm",
    "rate_norm_trained", "qcfs_only", "fast_snn_untrained", "fast_snn", "qcfs_trained", "fas", "las"
)  # fmt: skip


def _number(batches: Sequence[Batch]) -> int:
    return sum(len(batch["labels"]) for batch in batches)


def table(rows: Sequence[dict[str, Any]], steps: Sequence[int]) -> str:
    """Return the accuracies in percent as Markdown, a line for each method and schedule, and spikes per neuron."""
    lines = [
        "| method | schedule | " + " | ".join(f"T = {t}" for t in steps) + " |",
        "|---|---|" + "---|" * len(steps),
    ]
    for name in dict.fromkeys(row["method"] for row in rows):
        mine = {row["timesteps"]: row for row in rows if row["method"] == name}
        for schedule in ("quantised", "online", "layerwise"):
            cells = []
            for t in steps:
                row = mine.get(t, {})
                spikes = row.get(f"spikes_{schedule}")
                count = "" if spikes is None else f" ({spikes:.2f})"
                cells.append(f"{100 * row[schedule]:.1f}{count}" if schedule in row else "")
            if any(cells):
                lines.append(f"| {name} | {schedule} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure every row, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--timesteps", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--test-per-class", type=int, default=100)
    parser.add_argument("--calibration", type=int, default=500, help="photographs that calibrate")
    parser.add_argument("--training-images", type=int, default=10000, help="photographs that methods train on")
    parser.add_argument("--spike-images", type=int, default=50, help="test photographs whose spikes are counted")
    parser.add_argument("--only", nargs="+", choices=ROWS, help="rows to measure, all by default")
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    comparison = Comparison(a)
    for name in a.only or ROWS:
        getattr(comparison, name)()
    rows = comparison.read()
    print(table(rows, sorted({row["timesteps"] for row in rows})))


if __name__ == "__main__":
    main()
