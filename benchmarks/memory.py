"""Peak memory of calibration beyond the model, by depth: it must not grow with the number of layers.

    python benchmarks/memory.py --out build/memory.json

Each size runs in a process of its own: a GPT-2 shape with random weights is loaded, then calibrated on random
ids. What is reported is the peak resident memory (VmHWM) less the resident memory before calibration began.

With ``--return-at-once`` the C library returns every freed tensor to the system (MALLOC_MMAP_THRESHOLD_): slower, and
what is left is what calibration itself holds. The difference to a run without is memory that was freed and kept.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

_CHILD = """
import gc, sys, torch, fas
from transformers import GPT2Config, GPT2LMHeadModel

layers, width, tokens = map(int, sys.argv[1:])
torch.set_num_threads(1)
torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(n_layer=layers, n_embd=width, n_head=8, vocab_size=4096)).eval()
batches = [{"input_ids": torch.randint(4096, (8, 256))} for _ in range(tokens // 2048)]
with torch.no_grad():
    model(input_ids=batches[0]["input_ids"][:1])
gc.collect()


def resident(name):
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(lines[name].split()[0]) / 1024


before = resident("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
fas.convert(model, fas.FAS(timesteps=8, neuron="signed_if"), calibration=batches)
parameters = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
print(parameters, before, resident("VmHWM") - before)
"""


def main() -> None:
    """Measure a few depths and print MiB."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--tokens", type=int, nargs="+", default=[16384])
    parser.add_argument("--return-at-once", action="store_true", help="tell glibc to keep nothing")
    parser.add_argument("--out", type=Path, default=Path("build/memory.json"))
    arguments = parser.parse_args()
    kept = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"} if arguments.return_at_once else {}
    rows = []
    for tokens in arguments.tokens:
        for layers in arguments.layers:
            command = [sys.executable, "-c", _CHILD, *map(str, (layers, arguments.width, tokens))]
            done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **kept})
            parameters, before, extra = map(float, done.stdout.split())
            row = {
                "layers": layers,
                "width": arguments.width,
                "tokens": tokens,
                "return_at_once": arguments.return_at_once,
                "parameters_mib": parameters,
                "resident_before_mib": before,
                "peak_beyond_mib": extra,
            }
            rows.append(row)
            print({k: round(v, 1) for k, v in row.items()}, flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
