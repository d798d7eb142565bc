"""Perplexity of converted models beside the controls they need; writes JSON, prints a table.

    python benchmarks/quality.py src/fas/assets/stdlib-gpt2 --train stdlib --test stdlib --out build/quality.json

Rows: the dense model; converted without training, by coverage, code and T; online against layerwise; and,
with ``--finetune STEPS``, after stage 1 beside the dense model fine-tuned on the same data. With
``--spike-prices``, quality against spikes instead: converted at each price and, with ``--finetune``, trained at it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers

import fas
from fas.data.text import batches, load_documents, token_stream, windows
from fas.evaluation.perplexity import perplexity
from fas.stages.finetune import Finetune
from fas.training.finetuning import finetune, language_modelling


def main() -> None:
    """Measure one model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--timesteps", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--coverages", nargs="*", default=["mlp", "linear"])
    parser.add_argument("--tokens", type=int, default=65536, help="for calibration")
    parser.add_argument("--test-tokens", type=int, default=32768)
    parser.add_argument("--online-tokens", type=int, default=4096)
    parser.add_argument("--finetune", type=int, default=0, metavar="STEPS")
    parser.add_argument("--threshold-rate", type=float, default=1e-3, help="of stage 1")
    parser.add_argument("--distillation", type=float, default=0.0, help="share of KL to the dense model in stage 1")
    parser.add_argument("--learning-rate", type=float, default=2e-4, help="of stage 1")
    parser.add_argument("--train-coverages", nargs="*", default=["linear"], help="of stage 1")
    parser.add_argument("--train-timesteps", type=int, nargs="*", default=[8], help="of stage 1")
    parser.add_argument("--spike-prices", type=float, nargs="*", default=[])
    parser.add_argument("--train-price", type=float, help="of stage 1, if not that of calibration")
    parser.add_argument("--neurons", nargs="+", default=["signed_if", "phase", "ternary_phase"])
    parser.add_argument("--seed", type=int, default=0, help="of the windows that calibrate")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    Quality(arguments).run()


class Quality:
    """One model, its data and the rows measured so far."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.rows: list[dict[str, Any]] = []
        tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model)
        train = token_stream(load_documents(arguments.train), tokenizer)
        test = token_stream(load_documents(arguments.test, split="test"), tokenizer)
        self.test = test[: arguments.test_tokens]
        self.train = windows(train, 256)
        self.calibration = batches(windows(train, 256, limit_tokens=arguments.tokens, seed=arguments.seed), 16)
        self.base = self.measure(self.load(), network="ann")
        self.control: float | None = None

    def load(self) -> Any:
        """Return the dense model anew."""
        cls = transformers.AutoModelForCausalLM
        return cls.from_pretrained(self.arguments.model, dtype=torch.float32).eval()

    def measure(self, model: Any, **conditions: Any) -> float:
        """Measure a perplexity and spikes, print the row and write all rows."""
        spikes = None
        began = time.perf_counter()
        if conditions["network"] == "snn":
            with fas.record(model) as recording:
                value = perplexity(model, self.test, window=256, stride=128).value
            spikes = recording.spikes_per_neuron
        else:
            value = perplexity(model, self.test, window=256, stride=128).value
        reference = conditions.pop("reference", getattr(self, "base", value))
        row = {
            **conditions,
            "perplexity": value,
            "ratio": value / reference,
            "spikes_per_neuron": spikes,
            "seconds": time.perf_counter() - began,
        }
        self.rows.append(row)
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
        self.arguments.out.parent.mkdir(parents=True, exist_ok=True)
        versions = {
            "fas": fas.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        about = {key: str(value) for key, value in vars(self.arguments).items()}
        text = json.dumps({"arguments": about, "versions": versions, "rows": self.rows}, indent=2)
        self.arguments.out.write_text(text + "\n", encoding="utf-8")
        return value

    def convert(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        """Return a converted model and what to say about it."""
        model = self.load()
        fas.convert(model, fas.FAS(**options), calibration=self.calibration)
        return model, {"network": "snn", **options, "calibration_s": model.records[-1].results["seconds"]}

    def run(self) -> None:
        """Measure every row."""
        if self.arguments.spike_prices:
            self.sparsity()
            return
        for coverage in self.arguments.coverages:
            for timesteps in self.arguments.timesteps:
                for neuron in self.arguments.neurons:
                    for centred in (True, False):
                        model, about = self.convert(
                            coverage=coverage, timesteps=timesteps, neuron=neuron, centred=centred
                        )
                        self.measure(model, **about)
                if timesteps == 8:
                    self.online(coverage)
        if self.arguments.finetune:
            for coverage in self.arguments.train_coverages:
                for neuron in self.arguments.neurons:
                    for timesteps in self.arguments.train_timesteps:
                        self.stage_one(coverage=coverage, timesteps=timesteps, neuron=neuron)

    def sparsity(self) -> None:
        """Measure what spikes buy: at every price, without training and with it."""
        for coverage in self.arguments.coverages:
            for timesteps in self.arguments.timesteps:
                for neuron in self.arguments.neurons:
                    for price in self.arguments.spike_prices:
                        options = {"coverage": coverage, "timesteps": timesteps, "neuron": neuron, "spike_price": price}
                        model, about = self.convert(**options)
                        self.measure(model, **about)
                        if self.arguments.finetune:
                            self.stage_one(**options)

    def online(self, coverage: str) -> None:
        """Compare the online schedule with the layerwise one on fewer tokens: it costs T passes."""
        everything, self.test = self.test, self.test[: self.arguments.online_tokens]
        for neuron in ("signed_if", "clipped_count"):
            model, about = self.convert(coverage=coverage, timesteps=8, neuron=neuron)
            reference = self.measure(model, **about, tokens=len(self.test))
            model.schedule = "online"
            for operators in ("difference", "instant"):
                model.operators = operators
                online = {"schedule": "online", "operators": operators, "tokens": len(self.test)}
                self.measure(model, **about, **online, reference=reference)
        self.test = everything

    def stage_one(self, **options: Any) -> None:
        """Fine-tune the quantised network and, once, the dense control on the same data for the same steps."""
        model, about = self.convert(**options)
        price = self.arguments.train_price
        if price is None:
            price = options.get("spike_price", 0.0)
        given = self.arguments
        settings = Finetune(
            max_steps=given.finetune, learning_rate=given.learning_rate, batch_size=8, scheduler="cosine", warmup=0.05,
            threshold_learning_rate=given.threshold_rate, save_steps=10**6, spike_price=price,
            distillation=given.distillation,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as directory:
            rows = language_modelling(self.train[: 8 * self.arguments.finetune])
            _, control = finetune(model, rows, settings, output_dir=directory, control=self.control is None)
        if control is not None:
            self.control = self.measure(control.eval(), network="control", steps=self.arguments.finetune)
        model.eval()
        self.measure(model, **about, steps=self.arguments.finetune, train_price=price, reference=self.control)


if __name__ == "__main__":
    main()
