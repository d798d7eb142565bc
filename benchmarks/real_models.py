"""Quality of converted real models, row by row; writes JSON, prints a table. The rows of docs/real-models.md.

    make models
    python -m benchmarks.real_models smollm2-135m --train DIR/train.txt --test DIR/wiki.test.raw
    python -m benchmarks.real_models gemma3-270m --train DIR/train.txt --test DIR/wiki.test.raw --rows linear mlp full

    python -m benchmarks.real_models smollm2-135m --train DIR/train.txt --test DIR/wiki.test.raw --rows mlp --steps 200

With ``--steps`` rows are trained (stage 1) after their conversion, and stand beside the dense model trained on the same
data. A row that the JSON file holds already, measured under the same conditions, is not measured again. Ratios have
intervals of 95 % confidence (paired bootstrap over windows); rows without what every window
gave (older files) have none.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fas
from fas.data.for_model import Sample, training_rows
from fas.energy.inventory import operations
from fas.errors import FASError
from fas.evaluation.interval import ratio_interval
from fas.evaluation.score import WINDOWS, measure, scores_on
from fas.loading import Loaded
from fas.neurons.adaptive_digit import AdaptiveDigit
from fas.stages.finetune import Finetune
from fas.storage.directory import write_text
from fas.training.finetuning import finetune, language_modelling
from fas.types import Method

ROWS: dict[str, Callable[[], Method]] = {
    "linear": lambda: fas.FAS(),
    "linear, 1.5 spikes": lambda: fas.FAS(spikes=1.5),
    "linear, 1.2 spikes": lambda: fas.FAS(spikes=1.2),
    "linear, 1.0 spikes": lambda: fas.FAS(spikes=1.0, neuron=AdaptiveDigit(least=1)),
    "linear, 0.9 spikes": lambda: fas.FAS(spikes=0.9, neuron=AdaptiveDigit(least=1)),
    "mlp": lambda: fas.FAS(coverage="mlp"),
    "mlp, 1.5 spikes": lambda: fas.FAS(coverage="mlp", spikes=1.5),
    "mlp, 0.9 spikes": lambda: fas.FAS(coverage="mlp", spikes=0.9),
    "mlp, 0.6 spikes": lambda: fas.FAS(coverage="mlp", spikes=0.6, neuron=AdaptiveDigit(least=0.5)),
    "mlp, 0.3 spikes": lambda: fas.FAS(coverage="mlp", spikes=0.3, neuron=AdaptiveDigit(least=0.5)),
    "full": lambda: fas.FAS(coverage="full"),
    "las": lambda: fas.LAS(timesteps=16),
    "linear, T = 5": lambda: fas.FAS(timesteps=5),
    "rate code": lambda: fas.FAS(neuron="signed_if"),
    "rate code, mlp": lambda: fas.FAS(neuron="signed_if", coverage="mlp"),
    "rate code, rotated": lambda: fas.FAS(neuron="signed_if", rotate=True),
    "graded rate code": lambda: fas.FAS(neuron="clipped_count"),
    "balanced ternary": lambda: fas.FAS(neuron="ternary_phase"),
    "bit planes": lambda: fas.FAS(neuron="phase"),
    "two ranges": lambda: fas.FAS(neuron="outlier_aware"),
    "threshold_balancing": lambda: fas.ThresholdBalancing(timesteps=32),
    "qcfs_only": lambda: fas.QCFSOnly(timesteps=32),
    "rate_norm": lambda: fas.RateNorm(timesteps=32),
    "the same thresholds for all tokens": lambda: fas.FAS(neuron="signed_digit"),
}


def main() -> None:
    """Measure rows of one model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", help="a name below build/models, or a directory")
    parser.add_argument("--train", type=Path, required=True, help="text to calibrate on")
    parser.add_argument("--test", type=Path, required=True, help="text to measure on")
    parser.add_argument("--second", type=Path, help="another text to measure on, 4,096 tokens of it")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="ROW")
    parser.add_argument("--tokens", type=int, default=4096, help="to calibrate on")
    parser.add_argument("--test-tokens", type=int, default=16384, help="to measure on, from the first; 0: all")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--steps", type=int, default=0, help="of stage 1, on a window each")
    parser.add_argument("--train-window", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--threshold-learning-rate", type=float, default=1e-3)
    parser.add_argument("--distillation", type=float, default=0.5)
    parser.add_argument("--spike-price", type=float, default=0.0, help="of stage 1")
    parser.add_argument("--out", type=Path, default=Path("build/real_models.json"))
    arguments = parser.parse_args()
    bench = Bench(arguments)
    for name in ("dense", *arguments.rows):
        bench.row(name)
    print(bench.table())


class Bench:
    """One model, its data, and the rows that are known."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.out = arguments, arguments.out
        self.known: list[dict[str, Any]] = json.loads(self.out.read_text()) if self.out.exists() else []
        named = Path("build/models") / arguments.model
        self.model = named if named.is_dir() else Path(arguments.model)
        self.texts = {
            "model": self.model.name,
            "test": arguments.test.name,
            "test_tokens": arguments.test_tokens,
            "window": arguments.window,
        }
        if arguments.second:
            self.texts["second"] = arguments.second.name

    def conditions(self, name: str) -> dict[str, Any]:
        """Return what the figures of a row depend on."""
        if name == "dense":
            return {"row": name, **self.texts}
        about: dict[str, Any] = {"train": self.arguments.train.name}
        if self.arguments.steps:
            names = ("steps", "train_window", "learning_rate")
            about |= {option: getattr(self.arguments, option) for option in names}
        if name == "control":
            return {"row": name, **self.texts, **about}
        if self.arguments.steps:
            names = ("threshold_learning_rate", "distillation", "spike_price")
            about |= {option: getattr(self.arguments, option) for option in names}
        about["tokens"] = self.arguments.tokens
        return {"row": name, **self.texts, **about, "method": repr(ROWS[name]())}

    def found(self, name: str) -> dict[str, Any] | None:
        """Return a row that has been measured."""
        wanted = self.conditions(name)
        steps = self.arguments.steps if name != "dense" else 0
        return next((r for r in self.known if r.items() >= wanted.items() and r.get("steps", 0) == steps), None)

    def row(self, name: str) -> None:
        """Measure a row that is not known, and write all."""
        row = self.found(name)
        if row is None:
            try:
                row = {**self.conditions(name), **self.measured(name)}
            except FASError as error:
                row = {**self.conditions(name), "refused": str(error)}
            self.known.append(row)
            write_text(self.out, json.dumps(self.known, indent=1) + "\n")
        say(row)

    def measured(self, name: str) -> dict[str, Any]:
        """Convert and score one row."""
        loaded, figures = fas.load(str(self.model)), {}
        if name != "dense":
            sample = Sample(self.arguments.tokens, self.arguments.window, 8)
            began, cpu = time.perf_counter(), time.process_time()
            fas.convert(
                loaded.model, ROWS[name](), calibration=str(self.arguments.train), tokenizer=loaded.tokenizer,
                sample=sample,
            )  # fmt: skip
            figures["conversion_s"], figures["conversion_cpu_s"] = (
                time.perf_counter() - began,
                time.process_time() - cpu,
            )
            figures |= {k: v for r in loaded.model.records for k, v in r.results.items() if k == "expected_divergence"}
            left = [o.what for o in operations(loaded.model) if o.floats]
            figures |= {"timesteps": loaded.model.timesteps, "floats": list(dict.fromkeys(left))}
            if self.arguments.steps:
                figures |= self.trained(loaded, name)
        return {**figures, **self.scored(loaded)}

    def trained(self, loaded: Loaded, name: str) -> dict[str, Any]:
        """Train a converted model; score the control, if it is not known."""
        given = self.arguments
        settings = Finetune(
            max_steps=given.steps, batch_size=1, precision="bf16", warmup=0.05, save_steps=50, save_total_limit=1,
            learning_rate=given.learning_rate, threshold_learning_rate=given.threshold_learning_rate,
            distillation=given.distillation, spike_price=given.spike_price,
        )  # fmt: skip
        rows = training_rows(loaded, str(given.train), Sample(given.steps * given.train_window, given.train_window))
        cpu, without = time.process_time(), self.found("control") is None
        record, control = finetune(
            loaded.model, language_modelling(rows), settings, output_dir=self.out.with_suffix("") / name,
            control=without,
        )  # fmt: skip
        figures = {"training_cpu_s": time.process_time() - cpu, **record.results}
        if control is not None:
            dense = replace(loaded, model=control.eval())
            self.known.append({**self.conditions("control"), **self.scored(dense)})
            say(self.known[-1])
        return figures

    def scored(self, loaded: Loaded) -> dict[str, Any]:
        """Score whatever a model runs, on both texts if there are two."""
        cpu = time.process_time()
        figures = self.scored_on(loaded, self.arguments.test, self.arguments.test_tokens)
        figures["measuring_cpu_s"] = time.process_time() - cpu
        if self.arguments.second:
            found = self.scored_on(loaded, self.arguments.second, 4096)
            figures |= {f"second_{quantity}": value for quantity, value in found.items()}
        return figures

    def scored_on(self, loaded: Loaded, text: Path, tokens: int) -> dict[str, Any]:
        """Return the perplexity of a model on a text, what every window gave, and its spikes."""
        scores = scores_on(
            loaded, str(text), limit=tokens or None, window=self.arguments.window,
            stride=self.arguments.window - (loaded.bos is not None), batch_size=8,
        )  # fmt: skip
        rows = measure(loaded, scores, by_window=True)
        return {row.quantity: row.value for row in rows} | {WINDOWS: rows[0].conditions[WINDOWS]}

    def table(self) -> str:
        """Return the rows asked for in Markdown."""
        dense = self.found("control" if self.arguments.steps else "dense")
        assert dense is not None
        lines = [
            f"| row | T | perplexity × {dense['row']} (95 %) | second text | spikes per neuron "
            "| conversion, s of one core |",
            "|---|---|---|---|---|---|",
        ]
        for name in self.arguments.rows:
            row = self.found(name)
            assert row is not None
            if "refused" in row:
                lines.append(f"| {name} | | {row['refused']} | | | |")
                continue
            second = ratio(row, dense, "second_") if self.arguments.second else ""
            lines.append(
                f"| {name} | {row['timesteps']} | {ratio(row, dense)} | {second} | {row['spikes_per_neuron']:.2f} "
                f"| {row['conversion_cpu_s']:.0f} |"
            )
        return "\n".join(lines)


def ratio(row: dict[str, Any], dense: dict[str, Any], text: str = "") -> str:
    """Return a row's perplexity over the dense one's, with its interval where both say what every window gave."""
    found = f"{row[f'{text}perplexity'] / dense[f'{text}perplexity']:.4f}"
    interval = ratio_interval(row.get(text + WINDOWS, ()), dense.get(text + WINDOWS, ()))
    return f"{found} ({interval[0]:.4f} to {interval[1]:.4f})" if interval else found


def say(row: dict[str, Any]) -> None:
    """Print a row without its windows."""
    print(json.dumps({key: value for key, value in row.items() if not key.endswith(WINDOWS)}), flush=True)


if __name__ == "__main__":
    main()
