"""Streaming a checkpoint larger than the memory: seconds per block, bytes on the way, most resident memory.

    python tools/write_random_checkpoint.py opt-6.7b /tmp/opt-6.7b
    python -m benchmarks.large /tmp/opt-6.7b --tokens 1024 --out build/large.json

Calibrates on random ids and throws the result away, or keeps it with ``--keep``. ``--blocks 6`` stops behind the
sixth block and states what the rest would take. Resident memory is that of the whole process, with the pages of
files that are mapped into it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch
import transformers

import fas
from benchmarks.suite.machine import describe
from fas.calibration.residence import Finished
from fas.memory import peak_resident
from fas.streaming import stream


class _Enough(Exception):
    """As many blocks as were asked for."""


def main() -> None:
    """Measure one checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--timesteps", type=int, default=8)
    parser.add_argument("--coverage", default="linear")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--budget-mib", type=int, default=256, help="of hidden states in memory")
    parser.add_argument("--blocks", type=int, help="stop behind so many")
    parser.add_argument("--keep", type=Path, help="directory for the result")
    parser.add_argument("--out", type=Path, default=Path("build/large.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(0)
    vocabulary = transformers.AutoConfig.from_pretrained(arguments.checkpoint).get_text_config().vocab_size
    rows = torch.randint(vocabulary, (arguments.tokens // arguments.window, arguments.window), generator=generator)
    batches = [{"input_ids": part} for part in rows.split(2)]
    blocks: list[Finished] = []

    def told(block: Finished) -> None:
        blocks.append(block)
        print(
            f"{block.path}: {block.seconds:.1f} s, {block.remaining:.0f} s to come, peak {block.peak / 2**30:.2f} GiB",
            flush=True,
        )
        if block.done == arguments.blocks:
            raise _Enough

    # Beside the checkpoint: the folder for temporary files may lie in memory.
    place = Path(tempfile.mkdtemp(prefix=".streamed.", dir=arguments.checkpoint.parent))
    method = fas.FAS(timesteps=arguments.timesteps, coverage=arguments.coverage, neuron="signed_if")
    began = time.perf_counter()
    try:
        stream(
            arguments.checkpoint, arguments.keep or place / "out", method,
            calibration=batches, budget=arguments.budget_mib << 20, told=told,
        )  # fmt: skip
    except _Enough:
        pass
    finally:
        shutil.rmtree(place)
    seconds = time.perf_counter() - began
    found = {
        "checkpoint": arguments.checkpoint.name,
        "checkpoint_bytes": sum(file.stat().st_size for file in arguments.checkpoint.glob("*.safetensors")),
        "tokens": sum(batch["input_ids"].numel() for batch in batches),
        "timesteps": arguments.timesteps,
        "coverage": arguments.coverage,
        "threads": arguments.threads,
        "seconds": seconds,
        "peak_resident_bytes": peak_resident(),
        "blocks": [asdict(block) for block in blocks],
        "machine": describe(torch.device("cpu")),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(f"{seconds:.0f} s, peak {found['peak_resident_bytes'] / 2**30:.2f} GiB, written to {arguments.out}")


if __name__ == "__main__":
    main()
