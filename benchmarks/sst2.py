"""Accuracy of a converted sentence classifier on a GLUE-style table, beside the dense model; writes JSON.

    python benchmarks/sst2.py build/models/sst2-bert --data DIR --out build/sst2.json

DIR holds train.tsv (calibration) and dev.tsv (measured).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import transformers

import fas
from fas.data.table import load_table, tokenise_table
from fas.evaluate.classify import classify


def main() -> None:
    """Measure one model at several T and in both coverages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--timesteps", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--rows", type=int, default=4096, help="sentences to calibrate on")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    cls = transformers.AutoModelForSequenceClassification
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model)
    train = tokenise_table(load_table(arguments.data / "train.tsv"), tokenizer)[: arguments.rows]
    dev = load_table(arguments.data / "dev.tsv")
    plain = [{key: row[key] for key in ("input_ids", "attention_mask")} for row in train]
    batches = [dict(tokenizer.pad(plain[i : i + 64], return_tensors="pt")) for i in range(0, len(plain), 64)]
    rows = [{"network": "ann", **classify(cls.from_pretrained(arguments.model).eval(), dev, tokenizer)}]
    print(rows[-1], flush=True)
    for coverage in ("mlp", "linear"):
        for timesteps in arguments.timesteps:
            model = cls.from_pretrained(arguments.model).eval()
            fas.convert(model, fas.FAS(coverage=coverage, timesteps=timesteps), calibration=batches)
            with fas.record(model) as spikes, torch.no_grad():
                scores = classify(model, dev, tokenizer)
            about = {"network": "snn", "coverage": coverage, "timesteps": timesteps}
            rows.append({**about, **scores, "spikes_per_neuron": spikes.spikes_per_neuron})
            print(rows[-1], flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"fas": fas.__version__, "rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
