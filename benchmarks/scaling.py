"""Memory and messages of both stages in several processes: formulas for 1 B to 70 B, and small runs against them.

    python benchmarks/scaling.py                                        # the tables, from the formulas
    python benchmarks/scaling.py --measure 2 --out build/scaling.json   # small runs in 1 and in 2 processes here

Bytes sent are those of the process's own TCP connections as Linux counts them, so they include whatever gloo does;
peaks are resident memory (VmHWM) beyond what the process held when its model was loaded.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

MIB, GIB = 2**20, 2**30
# Steps of the runs of stage 1 that are measured.
STEPS = 4
# Rows kept per site by calibration, and bytes of them at most (stages/calibrate.py, stages/walk.py).
ROWS, ROW_BYTES = 16384, 1 << 28


@dataclass(frozen=True)
class Shape:
    """A LLaMA shape: blocks, width, width of the MLP, width of keys and values, vocabulary."""

    layers: int
    width: int
    inner: int
    keys: int
    vocabulary: int

    @property
    def block(self) -> int:
        """Weights of one block."""
        return 2 * self.width * (self.width + self.keys) + 3 * self.width * self.inner

    @property
    def end(self) -> int:
        """Weights of the output layer, and of the embedding."""
        return self.vocabulary * self.width

    @property
    def weights(self) -> int:
        """All weights."""
        return self.layers * self.block + 2 * self.end

    @property
    def sites(self) -> list[int]:
        """Channels of the sites of coverage ``linear``."""
        return self.layers * [self.width, self.width, self.width, self.inner] + [self.width]


SHAPES = {
    "1.1 B": Shape(22, 2048, 5632, 256, 32000),
    "6.7 B": Shape(32, 4096, 11008, 4096, 32000),
    "13 B": Shape(40, 5120, 13824, 5120, 32000),
    "69 B": Shape(80, 8192, 28672, 1024, 32000),
}
SMALL = Shape(4, 512, 1376, 512, 4096)


def ddp_memory(weights: int, processes: int) -> float:
    """Bytes per device of stage 1: float32 weights, gradients, two moments, and the buckets of several processes."""
    return 4 * weights * (4 + (processes > 1))


def ddp_sent(weights: int, processes: int) -> float:
    """Bytes that each process sends per step: a ring adds gradients up and hands them round."""
    return 2 * 4 * weights * (processes - 1) / processes


def fsdp_memory(shape: Shape, processes: int) -> float:
    """Bytes per device: a share of everything, two whole blocks, and the output layer with its gradient."""
    return 16 * shape.weights / processes + 4 * 2 * (shape.block + shape.end)


def fsdp_sent(weights: int, end: int, processes: int, *, gloo: bool = False) -> float:
    """Bytes that each process sends per step: weights twice, but the output layer once, and gradients.

    gloo adds gradients up everywhere before each process takes its share of them, which doubles their part.
    """
    return 4 * (2 * weights - end + (2 if gloo else 1) * weights) * (processes - 1) / processes


def site_rows(channels: int, tokens: int) -> int:
    """Rows that calibration keeps of a site."""
    return min(tokens, ROWS, ROW_BYTES // (4 * channels))


def calibrate_memory(shape: Shape, tokens: int, processes: int) -> float:
    """Bytes beyond the weights: hidden states of a share, and rows of the widest site.

    Of these there are about nine arrays, and five more while several processes exchange them.
    """
    rows = max(4 * channels * site_rows(channels, tokens) for channels in shape.sites)
    return 2 * 4 * tokens * shape.width / processes + (14 if processes > 1 else 9) * rows


def calibrate_sent(shape: Shape, tokens: int, processes: int) -> float:
    """Bytes that each process sends in all: its rows of every site and of both networks, to every other one."""
    return sum(2 * 4 * site_rows(c, tokens) * c * (processes - 1) / processes for c in shape.sites)


def tables(processes: int, tokens: int) -> str:
    """Return what the formulas give, per process, as Markdown."""
    lines = [
        f"| weights | stage 1, DDP: GiB | sent per step, GiB | FSDP2: GiB | sent per step, GiB | "
        f"stage 2 ({tokens:,} tokens): GiB | beyond weights, GiB | sent in all, GiB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, shape in SHAPES.items():
        beyond = calibrate_memory(shape, tokens, processes)
        figures = [
            ddp_memory(shape.weights, processes), ddp_sent(shape.weights, processes), fsdp_memory(shape, processes),
            fsdp_sent(shape.weights, shape.end, processes), 4 * shape.weights + beyond, beyond,
            calibrate_sent(shape, tokens, processes),
        ]  # fmt: skip
        lines.append(f"| {name} | " + " | ".join(f"{figure / GIB:,.1f}" for figure in figures) + " |")
    return "\n".join(lines)


def sent() -> int:
    """Return the bytes that this process's TCP connections have sent so far (Linux, tcpi_bytes_sent)."""
    total = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            with socket.socket(fileno=os.dup(int(name))) as connection:
                if connection.family in (socket.AF_INET, socket.AF_INET6):
                    information = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 232)
                    total += struct.unpack_from("Q", information, 200)[0]
        except OSError:
            continue
    return total


def resident(what: str) -> int:
    """Return a figure of /proc/self/status in bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[what].split()[0]) * 1024


def child(stage: str, tokens: int, out: Path) -> None:
    """Run one stage as one of several processes; the first writes what it took."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    import fas
    from fas.distributed import join, place
    from fas.memory import give_back
    from fas.stages.finetune import Finetune
    from fas.training.finetuning import language_modelling, tuned

    torch.set_num_threads(1)
    torch.manual_seed(0)
    join("cpu")
    if stage == "fsdp":
        sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "distributed"))
        from shard import make_accelerate_shard

        make_accelerate_shard()
    # First something tiny, so that what is imported and compiled on the way is there.
    for shape, directory in ((Shape(1, 16, 16, 16, 64), out / "tiny"), (SMALL, out / "run")):
        config = LlamaConfig(
            hidden_size=shape.width, intermediate_size=shape.inner, num_hidden_layers=shape.layers,
            num_attention_heads=4, vocab_size=shape.vocabulary, max_position_embeddings=256,
        )  # fmt: skip
        model = LlamaForCausalLM(config).eval()
        rows = torch.randint(shape.vocabulary, (tokens // 128 if shape is SMALL else 8, 128))
        batches = [{"input_ids": part} for part in rows.split(4)]
        if stage != "calibrate":
            fas.convert(model, fas.FAS(timesteps=8, neuron="signed_if"), calibration=[{"input_ids": rows[:1, :32]}])
        gc.collect()
        give_back()
        held, before = resident("VmRSS"), sent()
        if stage == "calibrate":
            fas.convert(model, fas.FAS(timesteps=8, neuron="signed_if"), calibration=batches)
        else:
            settings = Finetune(max_steps=STEPS, batch_size=1, save_steps=1000)
            tuned(settings, model, language_modelling(rows[:, :32]), output_dir=directory)
    weights = sum(parameter.numel() for parameter in model.parameters())
    found = {"weights": weights, "sent": sent() - before, "peak": resident("VmHWM") - held}
    if place()[0] == 0:
        (out / "found.json").write_text(json.dumps(found))


def measure(processes: int, tokens: int) -> list[dict[str, float | str]]:
    """Run each stage in one and in several processes, and put the formulas beside."""
    found: list[dict[str, float | str]] = []
    fsdp = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
            "FSDP_RESHARD_AFTER_FORWARD": "true", "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}  # fmt: skip
    for stage, size in [
        ("calibrate", 1),
        ("calibrate", processes),
        ("ddp", 1),
        ("ddp", processes),
        ("fsdp", processes),
    ]:
        with tempfile.TemporaryDirectory() as out:
            subprocess.run(
                [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={size}", __file__,
                 "--child", stage, "--tokens", str(tokens), "--out", out],
                env={**os.environ, "OMP_NUM_THREADS": "1", **(fsdp if stage == "fsdp" else {})}, check=True,
            )  # fmt: skip
            row = json.loads((Path(out) / "found.json").read_text())
        weights = row["weights"]
        memory, messages = {
            "calibrate": (calibrate_memory(SMALL, tokens, size), calibrate_sent(SMALL, tokens, size)),
            # The weights themselves were there before. The first process hands them round once before the first step.
            "ddp": (
                ddp_memory(weights, size) - 4 * weights,
                STEPS * ddp_sent(weights, size) + 4 * weights * (size > 1),
            ),
            # A sharded model is a copy of the whole one, to which its weights come back at the end.
            "fsdp": (
                fsdp_memory(SMALL, size),
                STEPS * fsdp_sent(weights, SMALL.end, size, gloo=True) + 4 * weights * (size - 1) / size,
            ),
        }[stage]
        found.append(
            {"stage": stage, "processes": size, "peak_mib": row["peak"] / MIB, "peak_formula_mib": memory / MIB,
             "sent_mib": row["sent"] / MIB, "sent_formula_mib": messages / MIB}
        )  # fmt: skip
        print(json.dumps(found[-1]), flush=True)
    return found


def main() -> None:
    """Print the tables, or measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--measure", type=int, metavar="PROCESSES")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.tokens, options.out)
    elif options.measure:
        found = measure(options.measure, min(options.tokens, 8192))
        if options.out is not None:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(found, indent=2) + "\n")
    else:
        print(tables(options.processes, options.tokens))


if __name__ == "__main__":
    main()
