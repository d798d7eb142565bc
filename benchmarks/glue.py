"""A pretrained BERT on GLUE, dense and spiking: fine-tunes it per task once, converts it, scores the development rows.

    make models
    python -m benchmarks.glue build/models/minilm-l6 --glue DIR

Writes the fine-tuned models and the scores below ``--out`` and prints a table. What is there is not made again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers

import fas
from fas.data.for_model import Sample
from fas.data.table import Table, load_table
from fas.evaluation.glue import GLUE, glue_table
from fas.evaluation.score import measure, on_table
from fas.storage.directory import write_text
from fas.types import Method

# Passes over the training rows, and how many of these: SST-2 has 67,000, of which a part is enough.
EPOCHS = {"sst2": (1, 16_000), "mrpc": (3, None), "rte": (3, None), "cola": (2, None), "stsb": (2, None)}
ROWS: dict[str, Callable[[], Method]] = {
    "T = 8": lambda: fas.FAS(),
    "T = 8, full": lambda: fas.FAS(coverage="full"),
    "T = 5": lambda: fas.FAS(timesteps=5),
    "T = 4": lambda: fas.FAS(timesteps=4),
}


def main() -> None:
    """Fine-tune, convert and score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--glue", type=Path, required=True, help="GLUE as its archive unpacks")
    parser.add_argument("--tasks", nargs="+", default=list(EPOCHS), choices=list(EPOCHS))
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--tokens", type=int, default=4096, help="to calibrate on")
    parser.add_argument("--out", type=Path, default=Path("build/glue"))
    arguments = parser.parse_args()
    out = arguments.out / "scores.json"
    known: dict[str, dict[str, float]] = json.loads(out.read_text()) if out.exists() else {}
    for task in arguments.tasks:
        directory = arguments.out / task
        if not directory.exists():
            kind, labels = "regression" if task == "stsb" else None, GLUE[task].labels or None
            rows = load_table(training_part(arguments.glue, task), task=kind, label_names=labels)
            finetune(arguments.model, rows, *EPOCHS[task], directory)
        for name in ("dense", *arguments.rows):
            if f"{task}, {name}" not in known:
                known[f"{task}, {name}"] = scored(directory, task, name, arguments)
                write_text(out, json.dumps(known, indent=1) + "\n")
            print(task, name, known[f"{task}, {name}"], flush=True)
    print(table(known, arguments.tasks, arguments.rows))


def training_part(glue: Path, task: str) -> Path:
    """Return the file of a task's training rows."""
    return glue / Path(GLUE[task].file).with_name("train.tsv")


def finetune(source: str, rows: Table, epochs: int, limit: int | None, out: Path) -> None:
    """Fine-tune a pretrained model on a table and save it."""
    transformers.set_seed(0)
    outputs = max(len(rows.label_names), 1)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(source, num_labels=outputs)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    encoded = tokenizer(rows.sentences[:limit], rows.pairs and rows.pairs[:limit], truncation=True, max_length=128)
    examples = [
        {"input_ids": ids, "token_type_ids": types, "labels": label}
        for ids, types, label in zip(encoded["input_ids"], encoded["token_type_ids"], rows.labels, strict=False)
    ]
    options = transformers.TrainingArguments(
        output_dir=str(out.with_suffix(".run")), num_train_epochs=epochs, per_device_train_batch_size=16, seed=0,
        learning_rate=5e-5, lr_scheduler_type="linear", warmup_steps=50, save_strategy="no", report_to="none",
        logging_steps=100, train_sampling_strategy="group_by_length",
    )  # fmt: skip
    collate = transformers.DataCollatorWithPadding(tokenizer)
    trainer: Any = transformers.Trainer(model=model, args=options, train_dataset=examples, data_collator=collate)
    trainer.train()
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def scored(directory: Path, task: str, name: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Return what GLUE counts of one network, in %, and its spikes."""
    loaded = fas.load(str(directory))
    if name != "dense":
        sample = Sample(arguments.tokens, None, 16)
        train = str(training_part(arguments.glue, task))
        fas.convert(loaded.model, ROWS[name](), calibration=train, tokenizer=loaded.tokenizer, sample=sample)
    scores = on_table(task, glue_table(task, arguments.glue), 32)
    found = {one.quantity: one.value for one in measure(loaded, scores)}
    kept = {metric: 100 * found[metric] for metric in GLUE[task].metrics}
    return kept | {key: value for key, value in found.items() if key == "spikes_per_neuron"}


def table(known: dict[str, dict[str, float]], tasks: list[str], rows: list[str]) -> str:
    """Return the scores in Markdown, the spikes per neuron behind them."""
    names = [(task, metric) for task in tasks for metric in GLUE[task].metrics]
    lines = ["| | " + " | ".join(f"{task}, {metric}" for task, metric in names) + " | spikes per neuron |"]
    lines.append("|" + "---|" * (len(names) + 2))
    for name in ("dense", *rows):
        values = [f"{known[f'{task}, {name}'][metric]:.2f}" for task, metric in names]
        spikes = [known[f"{task}, {name}"].get("spikes_per_neuron") for task in tasks]
        sent = "" if None in spikes else f"{min(spikes):.2f} to {max(spikes):.2f}"  # type: ignore[type-var]
        lines.append(f"| {name} | " + " | ".join(values) + f" | {sent} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
